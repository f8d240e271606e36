"""Export a checkpoint's experts into an expert sidecar, or verify one; the code is mach_store.sidecar.

python tools/export_expert_sidecar.py --checkpoint DIR --output DIR/expert_sidecar --num-experts 256 --bits 4
python tools/export_expert_sidecar.py --verify DIR/expert_sidecar
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mach.commands.process import run_command
from mach.io.sidecar_layout import DEFAULT_ALIGNMENT, QUANTIZATION_MODES
from mach_store.sidecar.export import export_sidecar
from mach_store.sidecar.verification import verify_sidecar


def main(arguments: Sequence[str]) -> int:
    """Parse and run; 0 done, 1 the sidecar verified is corrupt, 2 refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="checkpoint directory, raw or stacked")
    parser.add_argument("--output", type=Path, help="sidecar directory to make")
    parser.add_argument("--num-experts", type=int, help="experts per layer, checked against the checkpoint")
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 5, 6, 8), help="bits per weight")
    parser.add_argument("--group-size", type=int, help="weights per scale when packing (family's default)")
    parser.add_argument("--mode", choices=QUANTIZATION_MODES, help="mode when packing (family's default)")
    parser.add_argument("--alignment", type=int, default=DEFAULT_ALIGNMENT, help="bytes (16384)")
    parser.add_argument(
        "--verify", type=Path, metavar="SIDECAR", help="check every byte of a sidecar instead"
    )
    options = parser.parse_args(arguments)
    if options.verify is not None:
        if options.checkpoint is not None or options.output is not None:
            parser.error("--verify stands alone: it checks a sidecar and exports nothing")
        bad = verify_sidecar(str(options.verify), _progress)
        for record in bad:
            print(record, file=sys.stderr)
        print(f"{options.verify}: {'corrupt' if bad else 'intact'}")
        return 1 if bad else 0
    if options.checkpoint is None or options.output is None:
        parser.error("--checkpoint and --output are required (or --verify)")
    layout = export_sidecar(
        options.checkpoint,
        options.output,
        num_experts=options.num_experts,
        bits=options.bits,
        group_size=options.group_size,
        mode=options.mode,
        alignment=options.alignment,
        progress=_progress,
    )
    layers, experts = len(layout.layers), layout.layers[0].num_experts
    print(f"{options.output}: {layers} layers of {experts} experts, {layout.record_bytes_total / 1e9:.3f} GB")
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rlayer {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_command("export_expert_sidecar", main))
