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
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint


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
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "intermediate_size": options.hidden,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": options.experts,
        "num_experts_per_tok": options.top_k,
        "moe_intermediate_size": options.expert_width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "quantization": {"mode": "affine", "bits": options.bits, "group_size": options.group_size},
    }
    source = resolve_checkpoint(options.tokenizer_from)
    write_synthetic_checkpoint(options.output, config, seed=options.seed, tokenizer_from=source)
    experts = sum(path.stat().st_size for path in (options.output / "expert_sidecar").glob("layer_*.bin"))
    print(f"{options.output}: {experts / 1e9:.2f} GB of experts")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("make_synthetic_checkpoint", main))
