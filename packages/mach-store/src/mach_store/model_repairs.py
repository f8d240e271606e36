"""Owns what mlx-lm 0.32's models of our families get wrong, set right on one model after it is built.

Every repair has a case in `tests/golden` that fails without it. Nothing of mlx-lm itself is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mach_store.yarn_rope import YarnRope

Config = Mapping[str, Any]
Weights = dict[str, mx.array]


class Float32Norm(nn.RMSNorm):
    """An RMSNorm with float32 weights whose output keeps the dtype of its input.

    Only where activations are narrower: otherwise a float32 weight is what widens the odd bfloat16 input.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """`x` normalised over its last axis."""
        normalised: mx.array = super().__call__(x)
        return normalised.astype(x.dtype)


class Float32Embedding(nn.Module):
    """A quantised embedding whose rows come out in float32; MLX gives bfloat16 for mxfp4, mxfp8 and nvfp4.

    Gemma multiplies them by a root that bfloat16 rounds.
    """

    def __init__(self, quantized: nn.QuantizedEmbedding) -> None:
        """Stand for `quantized`, whose weights are bound."""
        super().__init__()
        self.quantized = quantized

    def __call__(self, x: mx.array) -> mx.array:
        """Rows [..., features] of the tokens `x`."""
        rows: mx.array = self.quantized(x)
        return rows.astype(mx.float32)

    def as_linear(self, x: mx.array) -> mx.array:
        """Products of `x` with every row."""
        logits: mx.array = self.quantized.as_linear(x)
        return logits


def widen_embeddings(model: nn.Module) -> None:
    """Make every embedding of a loaded model give float32."""
    for _, owner in model.named_modules():
        for name, child in owner.children().items():
            if isinstance(child, nn.QuantizedEmbedding) and not isinstance(owner, Float32Embedding):
                setattr(owner, name, Float32Embedding(child))


def repair_model(model_type: str, model: nn.Module, config: Config, compute: mx.Dtype) -> None:
    """Set right what the family's model does not read from its config.

    Args:
        model_type: the family.
        model: built from `config`, without weights.
        config: normalised, see `mach.io.model_tensors.model_config`.
        compute: dtype of activations.
    """
    for repair in _MODEL_REPAIRS.get(model_type, ()):
        repair(model, config.get("text_config", config))
    if model_type == "qwen3_5_moe" and compute != mx.float32:
        _float32_norms(model)


def repair_weights(model_type: str, weights: Weights, config: Config) -> Weights:
    """What is to be given to the family's `sanitize` in place of `weights`."""
    repair = _WEIGHT_REPAIRS.get(model_type)
    return weights if repair is None else repair(weights, config.get("text_config", config))


def _yarn(model: Any, text: Config) -> None:
    """YaRN: `truncate` is ignored by all, and all of it by qwen3_moe."""
    rope = text.get("rope_scaling") or text["rope_parameters"]
    if rope["rope_type"] == "yarn":
        dims = int(text["head_dim"] * (rope.get("partial_rotary_factor") or 1.0))
        for layer in model.layers:
            if hasattr(layer, "self_attn"):
                layer.self_attn.rope = YarnRope(dims, rope)


def _layer_types(model: Any, text: Config) -> None:
    """Kinds of layers: qwen3_5_moe goes by `full_attention_interval` alone."""
    inner = model.language_model.model
    interval, args = text["full_attention_interval"], model.language_model.args
    linear = [kind == "linear_attention" for kind in text["layer_types"]]
    decoder = type(inner.layers[0])
    for index, wanted in enumerate(linear):
        if inner.layers[index].is_linear != wanted:
            if wanted and interval == 1:  # no index gives a linear layer then
                args.full_attention_interval = 2
            inner.layers[index] = decoder(
                args=args, layer_idx=0 if wanted else args.full_attention_interval - 1
            )
    # The layers whose caches say how masks are to look.
    inner.ssm_idx = linear.index(True) if True in linear else None
    inner.fa_idx = linear.index(False) if False in linear else None


_CENTRED_NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")


def _float32_norms(model: Any) -> None:
    """Norms that are stored less 1 stay float32, see `_widen_norms`."""
    inner = model.language_model.model
    owners = [(inner, "norm")]
    for layer in inner.layers:
        owners += [(layer, name) for name in _CENTRED_NORMS[:2]]
        if not layer.is_linear:
            owners += [(layer.self_attn, name) for name in _CENTRED_NORMS[2:]]
    for owner, name in owners:
        old = getattr(owner, name)
        setattr(owner, name, Float32Norm(old.weight.shape[0], eps=old.eps))


def _widen_norms(weights: Weights, text: Config) -> Weights:
    """`sanitize` adds 1 to zero-centred norms: in float32, because in bfloat16 their last bits were lost."""
    return {
        name: array.astype(mx.float32) if array.ndim == 1 and name.endswith("norm.weight") else array
        for name, array in weights.items()
    }


def _place_head(weights: Weights, text: Config) -> Weights:
    """An output projection stands outside the language model as published; tied, it is not loaded at all."""
    outside, inside = "lm_head.weight", "language_model.lm_head.weight"
    placed = {inside if name == outside else name: array for name, array in weights.items()}
    if text["tie_word_embeddings"]:
        placed.pop(inside, None)
    return placed


_MODEL_REPAIRS: dict[str, tuple[Callable[[Any, Config], None], ...]] = {
    "qwen3_moe": (_yarn,),
    "qwen3_5_moe": (_layer_types, _yarn),
    "gpt_oss": (_yarn,),
}
_WEIGHT_REPAIRS: dict[str, Callable[[Weights, Config], Weights]] = {
    "qwen3_5_moe": _widen_norms,
    "gemma4": _place_head,
}
