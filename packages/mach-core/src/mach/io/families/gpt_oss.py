"""Owns what a gpt_oss config.json means, and the tensors of the model that it describes."""

from __future__ import annotations

from mach.io.arch_adapter import MoeShape
from mach.io.config_file import ConfigFields
from mach.io.families.config_values import (
    Allowed,
    Values,
    layer_types,
    other_rope,
    other_value,
    rope_parameters,
    with_defaults,
)
from mach.io.families.config_values import vocabulary as vocabulary_of
from mach.io.families.config_values import width as width_of
from mach.io.families.tensor_parts import Tensors, attention, ends

SLIDING, FULL = "sliding_attention", "full_attention"

_ALLOWED: Allowed = {
    "hidden_act": ("silu",),
    "attention_bias": (True,),
    "swiglu_limit": (7.0, 7),
    "swiglu_alpha": (1.702,),
    "tie_word_embeddings": (False,),
}

# Of transformers' GptOssConfig.
_DEFAULTS = {
    "vocab_size": 201088,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def config_of(config: ConfigFields, text: ConfigFields) -> Values:
    """What mlx-lm's `ModelArgs` reads; `rope_scaling` holds all of the rotary embedding's parameters.

    Raises:
        ConfigError: a field is missing or impossible.
    """
    inside = ConfigFields(with_defaults(text.values, _DEFAULTS), text.path, text.prefix)
    values = inside.values
    width_of(inside, "sliding_window")
    values["num_local_experts"] = text.find("num_local_experts", "num_experts")[1]
    values["num_experts_per_tok"] = text.find("num_experts_per_tok", "experts_per_token")[1]
    values["layer_types"] = layer_types(text, (SLIDING, FULL), (SLIDING, FULL))
    plain = {"rope_theta": 150000.0} | {name: v for name, v in text.values.items() if v is not None}
    if not plain.get("rope_parameters") and not plain.get("rope_scaling"):
        plain["rope_scaling"] = dict(_ROPE)
    rope = rope_parameters(ConfigFields(plain, text.path, text.prefix))
    values["rope_theta"] = rope.values["rope_theta"]
    values["rope_scaling"] = rope.values
    return values


def unsupported(text: ConfigFields) -> str | None:
    """Why a value of the normalised config cannot be computed, or None."""
    if {*text.values["layer_types"]} != {SLIDING, FULL}:
        return f"{text.path}: {text.prefix}layer_types must hold both {SLIDING} and {FULL}"
    rope = text.object("rope_scaling")
    assert rope is not None
    return other_value(text, _ALLOWED) or other_rope(rope, ("default", "yarn"))


def tensors_of(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    """Every parameter but routed experts', from the normalised config."""
    hidden, heads, head = shape.hidden_size, width_of(text, "num_attention_heads"), width_of(text, "head_dim")
    queries, keys = heads * head, width_of(text, "num_key_value_heads") * head
    yield from ends("model.", "lm_head.weight", hidden, vocabulary_of(text))
    for layer in range(shape.num_layers):
        block = f"model.layers.{layer}"
        yield f"{block}.self_attn.sinks", (heads,)
        yield from attention(f"{block}.self_attn", hidden, queries, keys, queries, True)
        yield f"{block}.mlp.router.weight", (shape.num_experts, hidden)
        yield f"{block}.mlp.router.bias", (shape.num_experts,)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)


def path_of(name: str, text: ConfigFields) -> str | None:
    """The model's path of a checkpoint's tensor."""
    return name
