"""Make a random qwen3_moe checkpoint of a given size in the engine layout, for benchmarks and memory tests.

Example, 2.1 GB of 4-bit experts:

    python tools/make_synthetic_checkpoint.py --output big --hidden 1024 --expert-width 1536
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint


def main(arguments: Sequence[str]) -> int:
    """Parse, write, say how much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--expert-width", type=int, default=1536)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer-from", default="mach-pico", help="checkpoint whose tokenizer is copied")
    options = parser.parse_args(arguments)
    config = qwen3_moe_config(
        hidden=options.hidden,
        layers=options.layers,
        experts=options.experts,
        top_k=options.top_k,
        expert_width=options.expert_width,
        head_dim=64,
        context=4096,
        bits=options.bits,
        group_size=options.group_size,
    )
    source = resolve_checkpoint(options.tokenizer_from)
    write_synthetic_checkpoint(options.output, config, seed=options.seed, tokenizer_from=source)
    experts = sum(path.stat().st_size for path in (options.output / "expert_sidecar").glob("layer_*.bin"))
    print(f"{options.output}: {experts / 1e9:.2f} GB of experts")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("make_synthetic_checkpoint", main))
