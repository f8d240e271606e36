"""Owns what a qwen3_5_moe config.json means, and the tensors of the model that it describes."""

from __future__ import annotations

from mach.io.arch_adapter import MAX_LAYERS, MoeShape
from mach.io.config_file import ConfigFields
from mach.io.families.config_values import (
    Allowed,
    Values,
    layer_types,
    other_rope,
    other_value,
    rope_parameters,
    rotated_features,
    tied,
    with_defaults,
)
from mach.io.families.config_values import vocabulary as vocabulary_of
from mach.io.families.config_values import width as width_of
from mach.io.families.tensor_parts import Tensors, attention, ends, feed_forward

LINEAR, FULL = "linear_attention", "full_attention"

_ALLOWED: Allowed = {"hidden_act": ("silu",), "attn_output_gate": (True,)}

# Of transformers' Qwen3_5MoeTextConfig; mlx-lm's own differ.
_DEFAULTS = {
    "vocab_size": 248320,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "shared_expert_intermediate_size": 512,
}


def config_of(config: ConfigFields, text: ConfigFields) -> Values:
    """What mlx-lm's `ModelArgs` reads, nested under `text_config`; `layer_types` is always there.

    Raises:
        ConfigError: a field is missing or impossible.
    """
    inside = ConfigFields(with_defaults(text.values, _DEFAULTS), text.path, text.prefix)
    values = inside.values
    interval = text.integer("full_attention_interval", low=1, high=MAX_LAYERS, default=4)
    values["full_attention_interval"] = interval
    values["layer_types"] = layer_types(text, (LINEAR, FULL), (LINEAR,) * (interval - 1) + (FULL,))
    heads = width_of(inside, "linear_num_value_heads"), width_of(inside, "linear_num_key_heads")
    if heads[0] % heads[1]:
        raise text.error("linear_num_value_heads", f"is {heads[0]}, not a multiple of {heads[1]} key heads")
    values["tie_word_embeddings"] = tied(config, text, False)
    rope = rope_parameters(text)
    factor = rope.number("partial_rotary_factor", low=0.0, high=1.0, default=0.25)
    rope.values["partial_rotary_factor"] = factor
    rotated_features(rope, width_of(inside, "head_dim"))
    values["rope_parameters"] = rope.values
    # The reference always makes the chosen weights sum to one, whatever a config of an older family says.
    values["norm_topk_prob"] = True
    if text is config:
        return {"model_type": values["model_type"], "text_config": values}
    return config.values | {"text_config": values}


def unsupported(text: ConfigFields) -> str | None:
    """Why a value of the normalised config cannot be computed, or None."""
    if LINEAR not in text.values["layer_types"]:
        # Whether norms have had their 1 added shows in the convolutions alone.
        return f"{text.path}: {text.prefix}layer_types has no {LINEAR}, without which weights are ambiguous"
    rope = text.object("rope_parameters")
    assert rope is not None
    return other_value(text, _ALLOWED) or other_rope(rope, ("default", "yarn"), partial=True)


def tensors_of(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    """Every parameter but routed experts', from the normalised config."""
    hidden, heads, head = shape.hidden_size, width_of(text, "num_attention_heads"), width_of(text, "head_dim")
    queries, keys = heads * head, width_of(text, "num_key_value_heads") * head
    value_heads = width_of(text, "linear_num_value_heads")
    value_head = width_of(text, "linear_value_head_dim")
    values = value_heads * value_head
    mixed = 2 * width_of(text, "linear_num_key_heads") * width_of(text, "linear_key_head_dim") + values
    kernel = text.integer("linear_conv_kernel_dim", low=2, high=4096)
    biases = text.boolean("attention_bias", False)
    root = "language_model.model."
    lm_head = None if text.boolean("tie_word_embeddings", False) else "language_model.lm_head.weight"
    yield from ends(root, lm_head, hidden, vocabulary_of(text))
    for layer, kind in enumerate(text.values["layer_types"]):
        block = f"{root}layers.{layer}"
        if kind == LINEAR:
            mixer = f"{block}.linear_attn"
            yield f"{mixer}.conv1d.weight", (mixed, kernel, 1)
            yield f"{mixer}.in_proj_qkv.weight", (mixed, hidden)
            yield f"{mixer}.in_proj_z.weight", (values, hidden)
            yield f"{mixer}.in_proj_b.weight", (value_heads, hidden)
            yield f"{mixer}.in_proj_a.weight", (value_heads, hidden)
            yield f"{mixer}.dt_bias", (value_heads,)
            yield f"{mixer}.A_log", (value_heads,)
            yield f"{mixer}.norm.weight", (value_head,)
            yield f"{mixer}.out_proj.weight", (hidden, values)
        else:
            # The query projection also makes the output's gate.
            yield from attention(f"{block}.self_attn", hidden, 2 * queries, keys, queries, biases)
            yield f"{block}.self_attn.q_norm.weight", (head,)
            yield f"{block}.self_attn.k_norm.weight", (head,)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        yield f"{block}.mlp.gate.weight", (shape.num_experts, hidden)
        shared = width_of(text, "shared_expert_intermediate_size")
        yield from feed_forward(f"{block}.mlp.shared_expert", hidden, shared)
        yield f"{block}.mlp.shared_expert_gate.weight", (1, hidden)


def path_of(name: str, text: ConfigFields) -> str | None:
    """The model's path of a checkpoint's tensor, or None where loading drops it."""
    if name.startswith(("vision_tower", "model.visual")) or "mtp." in name:
        return None
    if name.startswith("model.language_model"):
        name = name.replace("model.language_model", "language_model.model")
    elif not name.startswith("language_model."):
        name = f"language_model.{name}"
    ends_tied = text.boolean("tie_word_embeddings", False)
    return None if ends_tied and name == "language_model.lm_head.weight" else name
