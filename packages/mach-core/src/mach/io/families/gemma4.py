"""Owns what a gemma4 config.json means, and the tensors of the model that it describes."""

from __future__ import annotations

from mach.io.arch_adapter import MAX_LAYERS, MAX_WIDTH, MoeShape
from mach.io.config_file import ConfigFields
from mach.io.families.config_values import (
    LARGE,
    LEAST_BASE,
    MOST_BASE,
    SMALL,
    Allowed,
    Values,
    layer_types,
    other_rope,
    other_value,
    rotated_features,
    tied,
    with_defaults,
)
from mach.io.families.config_values import vocabulary as vocabulary_of
from mach.io.families.config_values import width as width_of
from mach.io.families.tensor_parts import Tensors, attention, ends, feed_forward

SLIDING, FULL = "sliding_attention", "full_attention"

_ALLOWED: Allowed = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": ("vision",),  # which says nothing of text
}

# Of transformers' Gemma4TextConfig; mlx-lm's own differ.
_DEFAULTS = {
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "hidden_size_per_layer_input": 256,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}
_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}


def config_of(config: ConfigFields, text: ConfigFields) -> Values:
    """What mlx-lm's `ModelArgs` reads; the vocabulary's size stands outside and inside.

    Raises:
        ConfigError: a field is missing or impossible.
    """
    given = dict(text.values)
    if given.get("vocab_size") is None and config.values.get("vocab_size") is not None:
        given["vocab_size"] = config.values["vocab_size"]
    given["tie_word_embeddings"] = tied(config, text, True)
    inside = ConfigFields(with_defaults(given, _DEFAULTS), text.path, text.prefix)
    values = inside.values
    width_of(inside, "sliding_window")
    inside.number("final_logit_softcapping", low=SMALL, high=LARGE, default=LARGE)
    pattern = text.integer("sliding_window_pattern", low=1, high=MAX_LAYERS, default=6)
    types = layer_types(text, (SLIDING, FULL), (SLIDING,) * (pattern - 1) + (FULL,))
    types[-1] = FULL  # as the reference does, whatever is declared
    values["layer_types"] = types
    values["num_key_value_heads"] = width_of(inside, "num_key_value_heads")
    _unfold_layers(inside, types)
    values["rope_parameters"] = _rope(inside)
    return config.values | {"text_config": values, "vocab_size": vocabulary_of(inside)}


def _unfold_layers(text: ConfigFields, types: list[str]) -> None:
    """Sizes of full-attention layers, which transformers 5 writes as exceptions, layer by layer."""
    exceptions = text.object("per_layer_config")
    if exceptions is None:
        return
    found = [exceptions.object(str(layer)) for layer, kind in enumerate(types) if kind == FULL]
    sizes = [entry.values for entry in found if entry is not None]
    known = {"head_dim", "num_key_value_heads"}
    layers = {str(layer) for layer, kind in enumerate(types) if kind == FULL}
    if {*exceptions.values} != layers or sizes != sizes[:1] * len(layers) or not {*sizes[0]} <= known:
        raise text.error("per_layer_config", "must give all full-attention layers, and no others, one size")
    first = ConfigFields(sizes[0], text.path, f"{exceptions.prefix}{min(layers, key=int)}.")
    text.values["global_head_dim"] = width_of(first, "head_dim", width_of(text, "head_dim"))
    heads = width_of(text, "num_key_value_heads")
    text.values["num_global_key_value_heads"] = width_of(first, "num_key_value_heads", heads)
    if text.values["num_global_key_value_heads"] != heads and not text.boolean("attention_k_eq_v", False):
        raise first.error("num_key_value_heads", "may differ only where attention_k_eq_v is true")


def _rope(text: ConfigFields) -> Values:
    nested = text.object("rope_parameters")
    if nested is None:
        return {kind: dict(values) for kind, values in _ROPE.items()}
    result: Values = {}
    head = width_of(text, "head_dim")
    for kind in _ROPE:
        rope = nested.object(kind)
        if rope is None:
            raise nested.error(kind, "is missing; the rotary embedding of each kind of layer is needed")
        rope.number("rope_theta", low=LEAST_BASE, high=MOST_BASE)
        if kind == FULL:
            rotated_features(rope, text.integer("global_head_dim", low=0, high=MAX_WIDTH) or head)
        rope.number("factor", low=SMALL, high=LARGE, default=1.0)
        result[kind] = {"rope_type": rope.values.get("type", "default")} | rope.values
        result[kind].pop("type", None)
    return result


def unsupported(text: ConfigFields) -> str | None:
    """Why a value of the normalised config cannot be computed, or None."""
    if problem := other_value(text, _ALLOWED):
        return problem
    nested = text.object("rope_parameters")
    assert nested is not None
    for kind, kinds in ((SLIDING, ("default",)), (FULL, ("proportional", "default"))):
        rope = nested.object(kind)
        assert rope is not None
        if problem := other_rope(rope, kinds, partial=True):
            return problem
    return None


def tensors_of(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    """Every parameter but routed experts', from the normalised config."""
    hidden, layers = shape.hidden_size, shape.num_layers
    root = "language_model.model."
    lm_head = None if text.boolean("tie_word_embeddings", True) else "language_model.lm_head.weight"
    yield from ends(root, lm_head, hidden, vocabulary_of(text))
    heads, head, key_heads = (
        width_of(text, name) for name in ("num_attention_heads", "head_dim", "num_key_value_heads")
    )
    global_key_heads = text.integer("num_global_key_value_heads", low=0, high=MAX_WIDTH, default=key_heads)
    global_head = text.integer("global_head_dim", low=0, high=MAX_WIDTH, default=head) or head
    alike = text.boolean("attention_k_eq_v", False)
    shared_from = _shared_from(text, layers)
    double = text.boolean("use_double_wide_mlp", False)
    width = width_of(text, "intermediate_size")
    gated = text.integer("hidden_size_per_layer_input", low=0, high=MAX_WIDTH)
    types = text.values["layer_types"]
    if not {*types[max(0, shared_from) :]} <= {*types[: max(0, shared_from)]}:
        raise text.error(
            "num_kv_shared_layers", f"leaves no layers of each type to share of, {layers} being all"
        )
    if gated:
        inputs = vocabulary_of(text, name="vocab_size_per_layer_input")
        yield f"{root}embed_tokens_per_layer.weight", (inputs, layers * gated)
        yield f"{root}per_layer_model_projection.weight", (layers * gated, hidden)
        yield f"{root}per_layer_projection_norm.weight", (gated,)
    for layer, kind in enumerate(types):
        block, full = f"{root}layers.{layer}", kind == FULL
        dim = global_head if full else head
        same = alike and full
        keys = (global_key_heads if same else key_heads) * dim
        queries = heads * dim
        for name, extents in attention(
            f"{block}.self_attn", hidden, queries, keys, queries, False, values=not same
        ):
            if layer < shared_from or not name.endswith(("k_proj.weight", "v_proj.weight")):
                yield name, extents
        yield f"{block}.self_attn.q_norm.weight", (dim,)
        if layer < shared_from:
            yield f"{block}.self_attn.k_norm.weight", (dim,)
        wide = width * (2 if double and layer >= shared_from > 0 else 1)
        yield from feed_forward(f"{block}.mlp", hidden, wide)
        for norm in _NORMS:
            yield f"{block}.{norm}.weight", (hidden,)
        if layer in shape.moe_layers:
            yield f"{block}.router.proj.weight", (shape.num_experts, hidden)
            yield f"{block}.router.scale", (hidden,)
            yield f"{block}.router.per_expert_scale", (shape.num_experts,)
            for norm in _EXPERT_NORMS:
                yield f"{block}.{norm}.weight", (hidden,)
        if gated:
            yield f"{block}.per_layer_input_gate.weight", (gated, hidden)
            yield f"{block}.per_layer_projection.weight", (hidden, gated)
            yield f"{block}.post_per_layer_input_norm.weight", (hidden,)
        yield f"{block}.layer_scalar", (1,)


_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_EXPERT_NORMS = (
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm_2",
)


def _shared_from(text: ConfigFields, layers: int) -> int:
    """The first layer that has no keys and values of its own."""
    return layers - text.integer("num_kv_shared_layers", low=0, high=MAX_LAYERS, default=0)


def path_of(name: str, text: ConfigFields) -> str | None:
    """The model's path of a checkpoint's tensor, or None where loading drops it."""
    if name == "lm_head.weight":
        name = "language_model.lm_head.weight"
    bare = name.removeprefix("model.")
    if bare.startswith(_DROPPED):
        return None
    if bare != name and bare.startswith("language_model"):
        bare = bare.replace("language_model.", "language_model.model.")
    if any(part in bare for part in _STATISTICS):
        return None
    if bare == "language_model.lm_head.weight" and text.boolean("tie_word_embeddings", True):
        return None
    if any(part in bare for part in (".self_attn.k_proj", ".self_attn.v_proj", ".self_attn.k_norm")):
        layer = bare.partition("layers.")[2].partition(".")[0]
        if layer.isascii() and layer.isdigit() and len(layer) < 6:
            if int(layer) >= _shared_from(text, len(text.values["layer_types"])):
                return None
    return bare


_DROPPED = (
    "vision_tower",
    "multi_modal_projector",
    "audio_tower",
    "embed_audio",
    "embed_vision",
    "vision_embedder",
)
_STATISTICS = ("self_attn.rotary_emb", "input_max", "input_min", "output_max", "output_min")
