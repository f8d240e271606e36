"""Owns the making of random checkpoints of any size in the engine layout, for tests and benchmarks.

Weights are random and routing is therefore nearly even: such a checkpoint shows memory, bytes and exactness,
never hit rates or text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mach.io.arch_registry import adapter_for
from mach.io.config_file import read_config
from mach.io.sidecar_layout import DEFAULT_ALIGNMENT, DIRECTORY, PROJECTIONS, Quantization, build_schema
from mach_store.model_builder import family_classes, swap_switch_mlp
from mach_store.sidecar.sidecar_writer import SidecarWriter

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def qwen3_moe_config(
    *,
    hidden: int = 64,
    layers: int = 2,
    experts: int = 8,
    top_k: int = 2,
    expert_width: int = 64,
    head_dim: int = 32,
    vocabulary: int = 8192,
    context: int = 512,
    bits: int = 4,
    group_size: int = 32,
) -> dict[str, Any]:
    """A small qwen3_moe config.json, quantised throughout; the default vocabulary is mach-pico's."""
    return {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": max(2, hidden // 128),
        "num_key_value_heads": 1 if hidden < 256 else 2,
        "head_dim": head_dim,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": expert_width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": context,
        "quantization": {"mode": "affine", "bits": bits, "group_size": group_size},
    }


def write_synthetic_checkpoint(
    output: Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    tokenizer_from: Path | None = None,
    alignment: int = DEFAULT_ALIGNMENT,
) -> None:
    """Write a random checkpoint, one expert in memory at a time.

    Args:
        output: the directory to make.
        config: config.json's content; its `quantization` (mode, bits, group_size) holds for experts and the
            rest, without it everything is bfloat16.
        seed: the same seed and config give the same bytes.
        tokenizer_from: a checkpoint whose tokenizer files are copied.
        alignment: of the sidecar's records.

    Raises:
        StoreError: this version has no model for the family.
        ConfigError: the config is malformed.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if tokenizer_from is not None:
        for name in TOKENIZER_NAMES:
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, output / name)
    fields = read_config(output)
    adapter = adapter_for(fields)
    base, arguments, wanted = family_classes(adapter, fields)
    shape = adapter.moe_shape(fields)
    given = config.get("quantization")
    q = None
    if given is not None:
        q = Quantization(mode=given.get("mode", "affine"), bits=given["bits"], group_size=given["group_size"])
    mx.random.seed(seed)
    model = base(arguments.from_dict(wanted))
    swap_switch_mlp(model, adapter, shape.moe_layers, lambda _layer, _old: nn.Identity())
    model.set_dtype(mx.bfloat16)
    if q is not None:
        nn.quantize(
            model,
            group_size=q.group_size,
            bits=q.bits,
            mode=q.mode,
            class_predicate=lambda _path, m: (
                hasattr(m, "to_quantized") and m.weight.shape[-1] % q.group_size == 0
            ),
        )
    mx.save_safetensors(
        str(output / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    rows = {"gate_proj": (shape.expert_width, shape.hidden_size)}
    rows["up_proj"] = rows["gate_proj"]
    rows["down_proj"] = (shape.hidden_size, shape.expert_width)
    packed = {
        projection: _example(rows[projection], q, adapter.has_expert_bias) for projection in PROJECTIONS
    }
    schema = build_schema(
        [
            (f"{projection}.{component}", str(array.dtype).removeprefix("mlx.core."), tuple(array.shape))
            for projection, parts in packed.items()
            for component, array in parts.items()
        ],
        dict.fromkeys(PROJECTIONS, q),
    )

    def records(layer: int) -> Iterator[list[bytes]]:
        for expert in range(shape.num_experts):
            random = np.random.default_rng((seed, layer, expert))
            yield [
                _bytes(random, segment.component, segment.dtype, segment.shape) for segment in schema.segments
            ]

    with SidecarWriter(
        str(output / DIRECTORY),
        model_type=adapter.model_type,
        alignment=alignment,
        fingerprint=f"seed {seed}",
    ) as writer:
        for layer in shape.moe_layers:
            writer.write_layer(layer, schema, records(layer))
        writer.finish()


def _example(shape: tuple[int, int], q: Quantization | None, bias: bool) -> dict[str, mx.array]:
    """Arrays with the shapes and dtypes of one packed projection."""
    weight = mx.zeros(shape, mx.bfloat16)
    parts = {"weight": weight}
    if q is not None:
        packed = mx.quantize(weight, q.group_size, q.bits, mode=q.mode)
        parts = dict(zip(("weight", "scales", "biases"), packed, strict=False))
    if bias:
        parts["bias"] = mx.zeros(shape[:1], mx.bfloat16)
    return parts


def _bytes(random: np.random.Generator, component: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Random content that keeps activations finite: weights of about ±0.03."""
    count = int(np.prod(shape))
    if dtype == "uint32":
        return random.bytes(count * 4)
    if dtype == "uint8":  # shared exponents: 2 ** (value - 127), or a small float8
        return np.full(count, 119, np.uint8).tobytes()
    values = {
        "scales": random.uniform(0.002, 0.006, count),
        "biases": -0.03 * np.ones(count),
    }.get(component, random.normal(0.0, 0.03, count))
    wide = values.astype(np.float32)
    if dtype == "bfloat16":
        return (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return wide.astype(dtype).tobytes()
