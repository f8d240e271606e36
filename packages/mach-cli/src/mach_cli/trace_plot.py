"""Owns `mach trace plot`: a trace in, pictures out, each whole or not there."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mach.errors import CommandError
from mach_cli.trace_replay_text import add_bank_flags, warn_of_loss
from mach_store.trace.layer_steps import LayerStep
from mach_store.trace.route_use import RouteUse
from mach_store.trace.trace_header import TraceHeader
from mach_store.trace.trace_replay import replay_trace

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "plot",
        help="pictures of a trace: hit rate against size, layers × experts, reuse",
        description="Draw a trace: hit-rate (of each policy, against the size of the bank, beside the "
        "optimum), experts (how often each is used, layers × experts) and reuse (how soon again). Pictures "
        "of these names are replaced. Needs matplotlib: pip install 'mach-cli[plot]'.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a trace; one that was broken off will do")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="directory for the pictures; made if need be"
    )
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the pictures (png)")
    add_bank_flags(parser)
    parser.set_defaults(command=plot)


def plot(options: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        CommandError: matplotlib is missing, or a picture cannot be written.
        TraceFormatError, BankSizeError: the file or a size is refused.
    """
    pictures = _pictures()
    uses: list[RouteUse] = []

    def sizes(header: TraceHeader) -> Any:
        uses.append(RouteUse(header))
        return options.sizes(header)

    def watch(step: LayerStep) -> None:
        uses[0].step(step)

    result = replay_trace(options.file, options.policy, sizes, watch)
    warn_of_loss(result)
    drawn = {
        "hit-rate": pictures.hit_rates(result),
        "experts": pictures.expert_map(result.header, uses[0]),
        "reuse": pictures.reuse(result.header, uses[0]),
    }
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            path = options.out / f"{name}.{options.format}"
            partial = path.with_name(f"{path.name}.partial")
            try:
                figure.savefig(partial, format=options.format)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            print(path)
    except OSError as error:
        raise CommandError(
            f"{error.filename or options.out}: cannot be written ({error.strerror})"
        ) from error
    sys.stdout.flush()
    return 0


def _pictures() -> Any:
    try:
        import_module("matplotlib")
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise CommandError(
            "mach trace plot needs matplotlib, which is not installed: pip install 'mach-cli[plot]' "
            "(mach trace replay does without)"
        ) from None
    return import_module("mach_cli.trace_pictures")
