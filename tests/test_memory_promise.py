"""Peak memory of a streaming run stays within what it was promised, whatever the experts weigh."""

import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import read_layout
from mach_store.expert_arrays import slot_bytes
from mach_store.settings import StoreSettings
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

CONSTANT = 256_000_000
"""Interpreter, MLX, tokenizer, activations: docs/architecture.md."""

CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 2048,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "quantization": {"mode": "affine", "bits": 4, "group_size": 64},
}


@pytest.fixture(scope="module")
def big_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("big")
    write_synthetic_checkpoint(directory, CONFIG, tokenizer_from=resolve_checkpoint("mach-pico"))
    return directory


def test_a_streaming_run_stays_within_weights_bank_scratch_and_a_constant(big_checkpoint: Path) -> None:
    inspection = inspect_checkpoint(big_checkpoint)
    assert inspection.sidecar_directory is not None
    layout = read_layout(inspection.sidecar_directory)
    bank = 60_000_000
    scratch = StoreSettings().scratch_experts * slot_bytes(layout.layers[0].schema, mx.float32)
    # Not-expert weights are widened to float32 on the CPU: at most twice their bytes on disk.
    promised = 2 * inspection.other_bytes + bank + scratch + CONSTANT
    assert promised < layout.record_bytes_total, "the experts must not fit, or nothing is shown"
    run = subprocess.run(
        [
            sys.executable, "-m", "mach_cli.generate_command", str(big_checkpoint), "--streaming",
            "--prompt", "def f(x): return x " * 4, "--max-tokens", "6", "--expert-cache-gb", str(bank / 1e9),
        ],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    peak = re.search(r"peak memory (\d+) MB", run.stderr)
    assert peak is not None, run.stderr
    assert int(peak.group(1)) * 1e6 <= promised
