"""Owns `mach check`: its flags, and its exit status (0 supported, 1 not supported, 2 cannot tell)."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence

from mach.commands.budget_flags import add_budget_flags
from mach.commands.process import run_command
from mach.preflight.check_report import CheckOptions, architecture_report, check_report
from mach.preflight.check_text import check_text, matrix_text
from mach.preflight.kv_cache_bytes import MAX_CONTEXT
from mach.settings import CoreSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the subcommand; returns the exit status."""
    return run_command("mach check", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    # A short run that makes hundreds of thousands of tuples and no cycles: collecting takes a third of it.
    gc.disable()
    if options.all_archs == (options.model is not None):
        parser.error("name a MODEL, or give --all-archs without one")
    if options.all_archs:
        report = architecture_report()
        print(json.dumps(report, indent=2) if options.json else matrix_text(report))
        return 0
    settings = CoreSettings.from_environment(cache_root=options.cache_dir)
    report = check_report(
        options.model,
        CheckOptions(
            draft_dir=options.draft_dir,
            context_length=options.context_length,
            expert_cache_gb=options.expert_cache_gb,
            memory_gb=options.memory_gb,
            prefill_scratch_gb=options.prefill_scratch_gb,
            kv_cache_gb=options.kv_cache_gb,
            local_only=options.local_only,
            revision=options.revision,
            measure_disk=options.measure_disk,
        ),
        settings,
    )
    print(json.dumps(report, indent=2) if options.json else check_text(report))
    return 0 if report["supported"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach check",
        description="Say whether a checkpoint will run here, on which paths, and whether it fits, without "
        "loading its weights.",
        epilog="Exit status: 0 supported, 1 not supported, 2 wrong usage or an unreadable checkpoint.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory, installed name or hub repo id")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    parser.add_argument("--all-archs", action="store_true", help="the matrix of path x architecture")
    parser.add_argument("--draft-dir", metavar="DIR", help="speculative-decoding draft to probe")
    parser.add_argument("--context-length", type=_context, metavar="N", help="tokens for the KV estimate")
    add_budget_flags(parser, loading=False)
    parser.add_argument("--local-only", action="store_true", help="never touch the network")
    parser.add_argument("--revision", default="main", metavar="REV", help="hub revision")
    parser.add_argument("--cache-dir", metavar="PATH", help="instead of ~/.cache/mach")
    parser.add_argument(
        "--measure-disk", action="store_true", help="measure this disk for the speed estimate (2 s)"
    )
    return parser


def _context(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= MAX_CONTEXT:
        return int(text[:12])
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens from 1 to {MAX_CONTEXT}")
