"""Owns `mach-prune`: its flags, its bar on stderr, and the line that says what was made."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mach.commands.process import run_command
from mach.commands.progress_bar import ProgressBar
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.quantization import AFFINE_BITS, MLX_MODES
from mach.io.tokenizer_files import has_tokenizer
from mach_store.prune.progress import Progress
from mach_store.prune.pruner import PruneReport, prune_checkpoint
from mach_store.sidecar.packing import Packing


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script; returns the exit status: 0 done or done before, 2 refused, 130 interrupted."""
    return run_command("mach-prune", run, arguments)


def run(arguments: Sequence[str]) -> int:
    """The command itself; what it raises is for its caller to report."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.bits is None and (options.mode is not None or options.group_size is not None):
        parser.error("--mode and --group-size hold for packing: give --bits too")
    packing = None
    if options.bits is not None:
        packing = Packing(bits=options.bits, group_size=options.group_size, mode=options.mode)
    source = resolve_checkpoint(options.source, tokenizer=False)
    start = time.monotonic()
    with ProgressBar(quiet=options.quiet) as bar:

        def draw(progress: Progress) -> None:
            layer = min(progress.layers + 1, progress.all_layers)
            label = f"layer {layer} of {progress.all_layers}"
            bar.update(label, progress.nbytes, progress.all_bytes, progress.taken_up)

        report = prune_checkpoint(
            source,
            options.output,
            plan=options.plan,
            candidate_id=options.candidate_id,
            packing=packing,
            overwrite=options.overwrite,
            listener=draw,
        )
    seconds = time.monotonic() - start
    if not report.already_done:
        _print_notes(source, options.output, report)
    print(_summary(options.output, report, seconds))
    return 0


def _print_notes(source: Path, output: Path, report: PruneReport) -> None:
    if not has_tokenizer(str(source)):
        print(f"mach-prune: {source} has no tokenizer, so neither has {output}", file=sys.stderr)
    for prefix, nbytes in report.dropped.items():
        print(
            f"mach-prune: left out {nbytes / 1e9:.3f} GB under {prefix}, which the engine does not load",
            file=sys.stderr,
        )


def _summary(output: Path, report: PruneReport, seconds: float) -> str:
    kept = f"{report.kept} of {report.num_experts} experts in each of {report.layers} layers"
    if report.already_done:
        return f"{output}: already there, complete: {kept}"
    nbytes = report.expert_bytes + report.other_bytes
    return (
        f"{output}: {kept}, {report.expert_bytes / 1e9:.3f} GB, and {report.other_bytes / 1e9:.3f} GB of "
        f"other weights; {seconds:.1f} s, {nbytes / 1e9 / max(seconds, 1e-9):.2f} GB/s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach-prune",
        description="Slice a checkpoint into the engine layout, with all of its experts or those of a plan.",
        epilog="An interrupted run is taken up by the same command. Exit status: 0 done, 2 refused.",
        allow_abbrev=False,
    )
    parser.add_argument("--source", required=True, help="checkpoint directory, or installed name (mach-pico)")
    parser.add_argument("--output", required=True, type=Path, help="directory to make")
    parser.add_argument("--plan", type=Path, help="JSON lines of experts to keep (all)")
    parser.add_argument("--candidate-id", help="which line of the plan (the only one)")
    parser.add_argument("--bits", type=int, choices=AFFINE_BITS, help="pack plain-float experts so")
    parser.add_argument("--mode", choices=MLX_MODES, help="mode when packing (the family's)")
    parser.add_argument("--group-size", type=int, help="weights per scale when packing (the family's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar on stderr")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier mach-prune made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
