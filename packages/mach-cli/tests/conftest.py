"""Random checkpoints with mach-pico's tokenizer, in the sliced and the stacked layout."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

# Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows.
mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pico = resolve_checkpoint("mach-pico")
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "rms_norm_eps": 1e-6,
        "vocab_size": json.loads((pico / "config.json").read_text())["vocab_size"],
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "norm_topk_prob": True,
        "quantization": {"mode": "affine", "bits": 4, "group_size": 32},
    }
    directory = tmp_path_factory.mktemp("checkpoints") / "sliced"
    write_synthetic_checkpoint(directory, config, seed=3, tokenizer_from=pico)
    return directory


@pytest.fixture(scope="session")
def stacked(sliced: Path) -> Path:
    directory = sliced.parent / "stacked"
    write_stacked_checkpoint(sliced, directory)
    return directory
