"""Owns `mach trace replay`: which policies and sizes, and the result as tables or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mach.commands.text_table import printable, text_table
from mach_store.trace.bank_sizes import bank_bytes, default_sizes, pool_slots
from mach_store.trace.trace_header import TraceHeader
from mach_store.trace.trace_replay import REPLAYED, ReplayedBank, TraceReplay, replay_trace

if TYPE_CHECKING:
    from argparse import _SubParsersAction

Sizes = Callable[[TraceHeader], Sequence[tuple[int, ...]]]


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "replay",
        help="what banks of any size and policy would have made of a trace",
        description="Replay a trace through the engine's own bank, at any size and with any policy, beside "
        "the least misses that are possible (belady).",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a trace; one that was broken off will do")
    add_bank_flags(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(command=replay)


def add_bank_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose policies and sizes: `options.policy`, `options.sizes`."""
    parser.add_argument(
        "--policy",
        type=_policies,
        default=REPLAYED,
        metavar="NAMES",
        help=f"comma-separated: {', '.join(REPLAYED)} (all)",
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=default_sizes,
        metavar="LIST",
        help="comma-separated: numbers with a point are parts of all experts, up to 1.0; whole numbers are "
        "slots (some from the least to 1.0, and the recorded bank's)",
    )


def replay(options: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        TraceFormatError, BankSizeError: the file or a size is refused.
    """
    result = replay_trace(options.file, options.policy, options.sizes)
    warn_of_loss(result)
    if options.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        print(_text(result))
    return 0


def warn_of_loss(result: TraceReplay) -> None:
    """One line on stderr where the end of a trace is missing."""
    if result.loss:
        print(f"mach trace: {result.path}: {result.loss}", file=sys.stderr)


def _facts_line(result: TraceReplay) -> str:
    """What was recorded, in a line."""
    header, run = result.header, result.header.run
    bank = f"{run.policy} in {sum(run.bank_slots)} slots" if run.bank_slots else f"{run.residency} experts"
    return printable(
        f"{header.checkpoint} ({header.architecture}), {len(header.layers)} layers of {header.experts} "
        f"experts, top {header.top_k}; {result.answers} answers, {result.prefill_tokens} tokens of prompts, "
        f"{result.decode_tokens} decoded; {run.recorded_by} {run.started}, {bank}"
    )


def _text(result: TraceReplay) -> str:
    rates = _table(result, lambda bank: f"{bank.tally.total.hit_rate:.4f}")
    read = _table(result, lambda bank: f"{result.decode_bytes_per_token(bank) / 1e6:.3f}")
    return "\n".join([
        _facts_line(result), "", "hit rate", rates, "", "MB read from disk for each decoded token", read,
    ])  # fmt: skip


def _table(result: TraceReplay, cell: Callable[[ReplayedBank], str]) -> str:
    policies = list(dict.fromkeys(bank.policy for bank in result.banks))
    by_size: dict[tuple[int, ...], dict[str, str]] = {}
    for bank in result.banks:
        by_size.setdefault(bank.slots, {})[bank.policy] = cell(bank)
    experts = result.header.experts * len(result.header.layers)
    rows = [
        (str(sum(slots)), f"{sum(slots) / experts:.3f}", f"{bank_bytes(result.header, slots) / 1e6:.1f}",
         *(cells[policy] for policy in policies))
        for slots, cells in by_size.items()
    ]  # fmt: skip
    return text_table(("slots", "part", "bank MB", *policies), rows)


def _policies(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(value.split(",")))
    unknown = [name for name in names if name not in REPLAYED]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(REPLAYED)}")
    return names


def _sizes(value: str) -> Sizes:
    wanted = list(dict.fromkeys(map(_size, value.split(","))))
    return lambda header: list(dict.fromkeys(pool_slots(header, size) for size in wanted))


def _size(value: str) -> float | int:
    try:
        size: float | int = float(value) if "." in value else int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is neither a part like 0.25 nor slots like 48") from None
    if not 0 < size < 1 << 40:
        raise argparse.ArgumentTypeError(f"{value!r} must be above 0")
    return size
