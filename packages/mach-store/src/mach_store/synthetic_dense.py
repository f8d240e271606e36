"""Owns the making of random dense checkpoints through mlx-lm's classes, for tests of the generic path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mach_store.synthetic_checkpoint import TOKENIZER_NAMES


def dense_config(model_type: str = "qwen3", *, context: int = 512) -> dict[str, Any]:
    """A small dense config.json that `qwen3` and `llama` understand; the vocabulary is mach-pico's."""
    return {
        "model_type": model_type,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": 8192,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }


def write_dense_checkpoint(
    output: Path,
    config: Mapping[str, Any],
    *,
    tokenizer_from: Path,
    dtype: mx.Dtype = mx.bfloat16,
    seed: int = 0,
) -> None:
    """Write a checkpoint with random weights.

    Args:
        output: directory to make; files in it are replaced.
        config: its config.json, of a family that mlx-lm has a module for.
        tokenizer_from: checkpoint to copy the tokenizer from.
        dtype: of the weights.
        seed: same seed, same weights.
    """
    module = import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(dict(config)))
    model.set_dtype(dtype)
    output.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(output / "model.safetensors"), weights, {"format": "mlx"})
    (output / "config.json").write_text(json.dumps(dict(config), indent=1))
    for name in TOKENIZER_NAMES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, output / name)
