"""Owns `mach trace`: its three commands, and which module does each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from mach.commands.process import run_command
from mach_cli import trace_plot, trace_record, trace_replay_text


def main(arguments: Sequence[str] | None = None) -> int:
    """The `trace` command of `mach`; returns the exit status: 0 done, 2 refused, 130 interrupted."""
    return run_command("mach trace", run, arguments)


def run(arguments: Sequence[str]) -> int:
    """The command itself; what it raises is for its caller to report."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach trace",
        description="Record which experts each token is routed to; replay the recording through banks of any "
        "size and policy, beside the optimum; plot it.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    trace_record.add_parser(commands)
    trace_replay_text.add_parser(commands)
    trace_plot.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
