"""Owns what a qwen3_moe config.json means, and the tensors of the model that it describes."""

from __future__ import annotations

from mach.io.arch_adapter import MAX_WIDTH, MoeShape
from mach.io.config_file import ConfigFields
from mach.io.families.config_values import Allowed, Values, other_rope, other_value, rope_parameters
from mach.io.families.config_values import vocabulary as vocabulary_of
from mach.io.families.config_values import width as width_of
from mach.io.families.tensor_parts import Tensors, attention, ends, feed_forward

_ALLOWED: Allowed = {"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,)}


def config_of(config: ConfigFields, text: ConfigFields) -> Values:
    """What mlx-lm's `ModelArgs` reads; `rope_scaling` holds all of the rotary embedding's parameters.

    Raises:
        ConfigError: a field is missing or impossible.
    """
    values = dict(text.values)
    if text.values.get("num_experts") is None and text.values.get("num_local_experts") is not None:
        values["num_experts"] = values["num_local_experts"]
    if (
        text.values.get("head_dim", ...) is ...
    ):  # transformers has no such field: it is added where it differs
        values["head_dim"] = max(1, width_of(text, "hidden_size") // width_of(text, "num_attention_heads"))
    if values.get("mlp_only_layers") is None:
        values["mlp_only_layers"] = []
    rope = rope_parameters(text)
    values["rope_theta"] = rope.values["rope_theta"]
    values["rope_scaling"] = rope.values
    for name in _NEEDED:
        if name not in values:
            raise text.error(name, "is missing; the model of this family needs it")
    return values


# mlx_lm.models.qwen3_moe.ModelArgs has no default for these.
_NEEDED = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_experts",
    "num_experts_per_tok", "decoder_sparse_step", "moe_intermediate_size", "rms_norm_eps", "vocab_size",
    "num_key_value_heads", "tie_word_embeddings", "max_position_embeddings", "norm_topk_prob",
)  # fmt: skip


def unsupported(text: ConfigFields) -> str | None:
    """Why a value of the normalised config cannot be computed, or None."""
    rope = text.object("rope_scaling")
    assert rope is not None
    return other_value(text, _ALLOWED) or other_rope(rope, ("default", "yarn"))


def tensors_of(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    """Every parameter but routed experts', from the normalised config."""
    hidden, head = shape.hidden_size, width_of(text, "head_dim")
    width = text.integer("intermediate_size", low=0, high=MAX_WIDTH)
    queries = width_of(text, "num_attention_heads") * head
    keys = width_of(text, "num_key_value_heads") * head
    tied = text.boolean("tie_word_embeddings", False)
    yield from ends("model.", None if tied else "lm_head.weight", hidden, vocabulary_of(text))
    for layer in range(shape.num_layers):
        block = f"model.layers.{layer}"
        yield from attention(f"{block}.self_attn", hidden, queries, keys, queries, False)
        yield f"{block}.self_attn.q_norm.weight", (head,)
        yield f"{block}.self_attn.k_norm.weight", (head,)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        if layer in shape.moe_layers:
            yield f"{block}.mlp.gate.weight", (shape.num_experts, hidden)
        else:
            yield from feed_forward(f"{block}.mlp", hidden, width)


def path_of(name: str, text: ConfigFields) -> str | None:
    """The model's path of a checkpoint's tensor, or None where loading drops it."""
    return None if name == "lm_head.weight" and text.boolean("tie_word_embeddings", False) else name
