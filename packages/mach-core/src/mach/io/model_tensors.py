"""Owns which tensors a family's model has besides routed experts, and whether a checkpoint has just those.

The engine builds mlx-lm's models and loads them strictly: a tensor too few, too many or of another shape is
a refusal, and so is the lack of a config field that has no default. Both show before loading. The tables
follow mlx-lm 0.32 (`mlx_lm.models.*`: `ModelArgs`, `Model.__init__`, `sanitize`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from mach.io.arch_adapter import MAX_LAYERS, MAX_WIDTH, MoeShape
from mach.io.config_file import ConfigFields
from mach.io.deepseek_v4_tensors import deepseek_v4_tensors, own_name
from mach.io.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES, BLOCK_MODES, QuantScheme, component_shapes
from mach.io.safetensors_header import TensorEntry

Extents = tuple[int, ...]
Tensors = Iterator[tuple[str, Extents]]
WEIGHTS_PREFIX = "model"
"""mlx-lm loads the files `model*.safetensors`, whatever the index says."""

MAX_VOCABULARY = 1 << 24


def model_tensors(model_type: str, config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    """Every parameter but routed experts' as (MLX path, extents before quantisation).

    Args:
        model_type: one of the families that this version has a model for.
        config: the whole config.json.
        text: the language model's part of it.
        shape: its routed part.

    Raises:
        ConfigError: a field that the model needs is missing or impossible.
    """
    return _FAMILIES[model_type](config, text, shape)


def weights_problem(
    model_type: str,
    config: ConfigFields,
    text: ConfigFields,
    shape: MoeShape,
    others: Mapping[str, TensorEntry],
) -> str | None:
    """Why the model cannot be loaded from `others`, the tensors that are no routed experts'; None if it can.

    Raises:
        ConfigError: as `model_tensors`, or `quantization` lacks what loading needs.
    """
    if model_type not in _FAMILIES:
        return None
    if config.find("model_file")[1] is not None:
        return f"{config.path}: model_file asks to run the checkpoint's own code, which mach does not do"
    for name in _NEVER_NULL:
        if text.values.get(name, "") is None:
            raise text.error(name, "is null; give its value, or leave it out")
    _vocabulary(config if text.find("vocab_size")[1] is None else text)  # which the engine reports
    wanted = dict(model_tensors(model_type, config, text, shape))
    packing = _packing(config, text)
    if packing is _FOREIGN:
        return "weights quantised as quantization_config says are not loaded: make an MLX checkpoint first"
    tied = text.boolean("tie_word_embeddings", model_type == "gemma4")
    shared_from = shape.num_layers - _shared_layers(model_type, text)
    found: dict[str, TensorEntry] = {}
    elsewhere = ""
    for name, entry in others.items():
        path = _model_path(model_type, name, tied, shared_from)
        if path is None:
            continue
        if os.path.basename(entry.file).startswith(WEIGHTS_PREFIX):
            found[path] = entry
        else:
            elsewhere = entry.file
    expected: dict[str, Extents] = {}
    for path, extents in wanted.items():
        module = path.removesuffix(".weight")
        scheme = None
        if packing is not None and len(extents) == 2 and module != path:
            scheme = _scheme(packing, module, extents[1], found)
        if scheme is None:
            expected[path] = extents
        else:
            for component, part in component_shapes(scheme, *extents).items():
                expected[f"{module}.{component}"] = part
    missing = [path for path in expected if path not in found]
    if missing:
        if elsewhere:
            return f"{elsewhere}: weights are loaded from {WEIGHTS_PREFIX}*.safetensors alone: rename it"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"the weights lack {missing[0]}{more}: fetch or make the checkpoint again"
    for path, entry in found.items():
        extents = expected.get(path, ())
        if path not in expected:
            return (
                f"{entry.file}: tensor {path[:200]!r} is none of this model's: wrong config.json, or weights"
            )
        if entry.shape != extents and not _moved(path, entry.shape, extents):
            return (
                f"{entry.file}: tensor {path!r} is {list(entry.shape)}, but config.json makes it "
                f"{list(extents)}"
            )
    return None


# The families' published configurations, which loading the tokenizer builds, refuse a null here.
_NEVER_NULL = (
    "tie_word_embeddings",
    "max_position_embeddings",
    "head_dim",
    "vocab_size",
    "linear_conv_kernel_dim",
    "full_attention_interval",
    "shared_expert_intermediate_size",
    "num_kv_shared_layers",
    "use_double_wide_mlp",
)


def _moved(path: str, found: Extents, wanted: Extents) -> bool:
    """A convolution as published has its kernel last; mlx-lm turns it."""
    return path.endswith("conv1d.weight") and found == (wanted[0], wanted[2], wanted[1])


# A dialect of quantisation that mlx-lm, if at all, rewrites beyond recognition on loading.
_FOREIGN = QuantScheme("foreign", 0, 0)
_Packing = tuple[QuantScheme, ConfigFields]


def _packing(config: ConfigFields, text: ConfigFields) -> _Packing | QuantScheme | None:
    """What `load_model` makes of the quantisation: (global scheme, overrides), `_FOREIGN`, or None."""
    fields = config.object("quantization")
    if fields is not None:
        mode = fields.text("mode", "affine")
        bits = fields.integer("bits", low=1, high=64)
        return QuantScheme(mode, bits, fields.integer("group_size", low=1, high=1 << 16)), fields
    foreign = config.object("quantization_config") or text.object("quantization_config")
    if foreign is None:
        return None
    method = foreign.text("quant_method")
    if method in ("mxfp4", "mxfp8"):
        return QuantScheme(method, *BLOCK_MODES[method]), ConfigFields({}, config.path)
    return _FOREIGN


def _scheme(
    packing: _Packing | QuantScheme, module: str, columns: int, found: Mapping[str, TensorEntry]
) -> QuantScheme | None:
    """How mlx-lm will pack `module`: as the config says of it, else as its tensors look."""
    assert not isinstance(packing, QuantScheme)
    main, overrides = packing
    own = overrides.values.get(module)
    if own is False or own == {}:
        return None
    if own is True:
        return main
    if own is not None:
        fields = overrides.object(module)
        assert fields is not None
        mode = fields.text("mode", "affine")
        # nn.quantize takes the mode's own numbers for those that an override leaves out.
        bits, group_size = BLOCK_MODES.get(mode, (4, 64))
        bits = fields.integer("bits", low=1, high=64, default=bits)
        return QuantScheme(mode, bits, fields.integer("group_size", low=1, high=1 << 16, default=group_size))
    weight, scales = found.get(f"{module}.weight"), found.get(f"{module}.scales")
    if scales is None:
        return None
    if weight is None or not weight.shape or not scales.shape or not scales.shape[-1]:
        return main
    group_size, bits = columns // scales.shape[-1], weight.shape[-1] * 32 // columns
    if scales.dtype != "U8":
        known = bits in AFFINE_BITS and group_size in AFFINE_GROUP_SIZES
        return QuantScheme("affine", bits, group_size) if known else main
    mode = next((name for name, pair in BLOCK_MODES.items() if pair == (bits, group_size)), main.mode)
    return QuantScheme(mode, bits, group_size) if mode in BLOCK_MODES and group_size else main


def _model_path(model_type: str, name: str, tied: bool, shared_from: int) -> str | None:
    """The path that a tensor's name becomes in the family's `sanitize`, or None where that drops it."""
    if model_type == "qwen3_5_moe":
        if name.startswith(("vision_tower", "model.visual")) or "mtp." in name:
            return None
        if name.startswith("model.language_model"):
            name = name.replace("model.language_model", "language_model.model")
        elif not name.startswith("language_model."):
            name = f"language_model.{name}"
        return None if tied and name == "language_model.lm_head.weight" else name
    if model_type == "gemma4":
        bare = name.removeprefix("model.")
        if bare.startswith(_GEMMA4_DROPPED):
            return None
        if bare != name and bare.startswith("language_model"):
            bare = bare.replace("language_model.", "language_model.model.")
        if any(part in bare for part in _GEMMA4_STATISTICS):
            return None
        if any(part in bare for part in (".self_attn.k_proj", ".self_attn.v_proj", ".self_attn.k_norm")):
            layer = bare.partition("layers.")[2].partition(".")[0]
            if layer.isascii() and layer.isdigit() and len(layer) < 6 and int(layer) >= shared_from:
                return None
        return bare
    if model_type == "deepseek_v4":
        return own_name(name)
    if tied and model_type == "qwen3_moe" and name == "lm_head.weight":
        return None
    return name


_GEMMA4_DROPPED = (
    "vision_tower",
    "multi_modal_projector",
    "audio_tower",
    "embed_audio",
    "embed_vision",
    "vision_embedder",
)
_GEMMA4_STATISTICS = ("self_attn.rotary_emb", "input_max", "input_min", "output_max", "output_min")


def _shared_layers(model_type: str, text: ConfigFields) -> int:
    if model_type != "gemma4":
        return 0
    return text.integer("num_kv_shared_layers", low=0, high=MAX_LAYERS, default=20)


def _attention(
    block: str, hidden: int, queries: int, keys: int, out: int, biases: bool, values: bool = True
) -> Tensors:
    sizes = {"q_proj": (queries, hidden), "k_proj": (keys, hidden)}
    if values:
        sizes["v_proj"] = (keys, hidden)
    sizes["o_proj"] = (hidden, out)
    for projection, extents in sizes.items():
        yield f"{block}.{projection}.weight", extents
        if biases:
            yield f"{block}.{projection}.bias", extents[:1]


def _feed_forward(block: str, hidden: int, width: int) -> Tensors:
    yield f"{block}.gate_proj.weight", (width, hidden)
    yield f"{block}.up_proj.weight", (width, hidden)
    yield f"{block}.down_proj.weight", (hidden, width)


def _ends(root: str, head: str | None, hidden: int, vocabulary: int) -> Tensors:
    yield f"{root}embed_tokens.weight", (vocabulary, hidden)
    yield f"{root}norm.weight", (hidden,)
    if head is not None:
        yield head, (vocabulary, hidden)


def _qwen3_moe(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    for name in _QWEN3_MOE_FIELDS:
        if name not in text.values:
            raise text.error(name, "is missing; the model of this family needs it")
    hidden, head = shape.hidden_size, _width(text, "head_dim")
    width = text.integer("intermediate_size", low=0, high=MAX_WIDTH)
    queries = _width(text, "num_attention_heads") * head
    keys = _width(text, "num_key_value_heads") * head
    tied = text.boolean("tie_word_embeddings", False)
    yield from _ends("model.", None if tied else "lm_head.weight", hidden, _vocabulary(text))
    for layer in range(shape.num_layers):
        block = f"model.layers.{layer}"
        yield from _attention(f"{block}.self_attn", hidden, queries, keys, queries, False)
        yield f"{block}.self_attn.q_norm.weight", (head,)
        yield f"{block}.self_attn.k_norm.weight", (head,)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        if layer in shape.moe_layers:
            yield f"{block}.mlp.gate.weight", (shape.num_experts, hidden)
        else:
            yield from _feed_forward(f"{block}.mlp", hidden, width)


# mlx_lm.models.qwen3_moe.ModelArgs has no default for these.
_QWEN3_MOE_FIELDS = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_experts",
    "num_experts_per_tok", "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "rms_norm_eps",
    "vocab_size", "num_key_value_heads", "head_dim", "rope_theta", "tie_word_embeddings",
    "max_position_embeddings", "norm_topk_prob",
)  # fmt: skip


def _qwen3_5_moe(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    hidden, heads = shape.hidden_size, _width(text, "num_attention_heads", 32)
    head = _width(text, "head_dim", max(1, hidden // heads))
    queries, keys = heads * head, _width(text, "num_key_value_heads", 8) * head
    key_heads, value_heads = (
        _width(text, "linear_num_key_heads", 16),
        _width(text, "linear_num_value_heads", 64),
    )
    key_head, value_head = (
        _width(text, "linear_key_head_dim", 192),
        _width(text, "linear_value_head_dim", 128),
    )
    values = value_heads * value_head
    mixed = 2 * key_heads * key_head + values
    biases = text.boolean("attention_bias", False)
    interval = text.integer("full_attention_interval", low=1, high=MAX_LAYERS, default=4)
    shared = _width(text, "shared_expert_intermediate_size")
    tied = text.boolean("tie_word_embeddings", False)
    root = "language_model.model."
    lm_head = None if tied else "language_model.lm_head.weight"
    yield from _ends(root, lm_head, hidden, _vocabulary(text, 151936))
    for layer in range(shape.num_layers):
        block = f"{root}layers.{layer}"
        if (layer + 1) % interval:
            mixer = f"{block}.linear_attn"
            kernel = text.integer("linear_conv_kernel_dim", low=1, high=4096, default=4)
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
            yield from _attention(f"{block}.self_attn", hidden, 2 * queries, keys, queries, biases)
            yield f"{block}.self_attn.q_norm.weight", (head,)
            yield f"{block}.self_attn.k_norm.weight", (head,)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        yield f"{block}.mlp.gate.weight", (shape.num_experts, hidden)
        yield from _feed_forward(f"{block}.mlp.shared_expert", hidden, shared)
        yield f"{block}.mlp.shared_expert_gate.weight", (1, hidden)


def _gpt_oss(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    hidden, head = shape.hidden_size, _width(text, "head_dim", 64)
    heads = _width(text, "num_attention_heads", 64)
    queries, keys = heads * head, _width(text, "num_key_value_heads", 8) * head
    _layer_types(text)
    yield from _ends("model.", "lm_head.weight", hidden, _vocabulary(text, 201088))
    for layer in range(shape.num_layers):
        block = f"model.layers.{layer}"
        yield f"{block}.self_attn.sinks", (heads,)
        yield from _attention(f"{block}.self_attn", hidden, queries, keys, queries, True)
        yield f"{block}.mlp.router.weight", (shape.num_experts, hidden)
        yield f"{block}.mlp.router.bias", (shape.num_experts,)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)


def _gemma4(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    hidden, layers = shape.hidden_size, shape.num_layers
    vocabulary = _vocabulary(config, 262144)  # the outer field, which mlx-lm writes over the inner
    root = "language_model.model."
    lm_head = None if text.boolean("tie_word_embeddings", True) else "language_model.lm_head.weight"
    yield from _ends(root, lm_head, hidden, vocabulary)
    heads, head = _width(text, "num_attention_heads", 8), _width(text, "head_dim", 256)
    key_heads = _width(text, "num_key_value_heads", 1)
    global_key_heads = text.integer("num_global_key_value_heads", low=0, high=MAX_WIDTH, default=key_heads)
    global_head = text.integer("global_head_dim", low=0, high=MAX_WIDTH, default=512) or head
    alike = text.boolean("attention_k_eq_v", False)
    shared_from = layers - _shared_layers("gemma4", text)
    double = text.boolean("use_double_wide_mlp", True)
    width = _width(text, "intermediate_size", 6144)
    gated = text.integer("hidden_size_per_layer_input", low=0, high=MAX_WIDTH, default=256)
    if text.values.get("sliding_window", "") is None:
        raise text.error("sliding_window", "is null; give its value, or leave it out")
    types = _layer_types(text)
    if types is None:
        pattern = text.integer("sliding_window_pattern", low=1, high=MAX_LAYERS, default=5)
        period = (*["sliding_attention"] * (pattern - 1), "full_attention")
        types = tuple(period[layer % pattern] for layer in range(layers))
    if len(types) < layers:
        raise text.error("layer_types", f"has {len(types)} items for {layers} layers")
    if not set(types[max(0, shared_from) : layers]) <= set(types[: max(0, shared_from)]):
        raise text.error(
            "num_kv_shared_layers", f"leaves no layers of each type to share of, {layers} being all"
        )
    if gated:
        inputs = _vocabulary(text, 262144, "vocab_size_per_layer_input")
        yield f"{root}embed_tokens_per_layer.weight", (inputs, layers * gated)
        yield f"{root}per_layer_model_projection.weight", (layers * gated, hidden)
        yield f"{root}per_layer_projection_norm.weight", (gated,)
    for layer in range(layers):
        block, sliding = f"{root}layers.{layer}", types[layer] == "sliding_attention"
        dim = global_head if types[layer] == "full_attention" else head
        same = alike and not sliding
        keys = (global_key_heads if same else key_heads) * dim
        queries = heads * dim
        for name, extents in _attention(
            f"{block}.self_attn", hidden, queries, keys, queries, False, values=not same
        ):
            if layer < shared_from or not name.endswith(("k_proj.weight", "v_proj.weight")):
                yield name, extents
        yield f"{block}.self_attn.q_norm.weight", (dim,)
        if layer < shared_from:
            yield f"{block}.self_attn.k_norm.weight", (dim,)
        yield from _feed_forward(
            f"{block}.mlp", hidden, width * (2 if double and layer >= shared_from > 0 else 1)
        )
        for norm in _GEMMA4_NORMS:
            yield f"{block}.{norm}.weight", (hidden,)
        if layer in shape.moe_layers:
            yield f"{block}.router.proj.weight", (shape.num_experts, hidden)
            yield f"{block}.router.scale", (hidden,)
            yield f"{block}.router.per_expert_scale", (shape.num_experts,)
            for norm in _GEMMA4_EXPERT_NORMS:
                yield f"{block}.{norm}.weight", (hidden,)
        if gated:
            yield f"{block}.per_layer_input_gate.weight", (gated, hidden)
            yield f"{block}.per_layer_projection.weight", (hidden, gated)
            yield f"{block}.post_per_layer_input_norm.weight", (hidden,)
        yield f"{block}.layer_scalar", (1,)


_GEMMA4_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_GEMMA4_EXPERT_NORMS = (
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm_2",
)

_Family = Callable[[ConfigFields, ConfigFields, MoeShape], Tensors]
_FAMILIES: dict[str, _Family] = {
    "qwen3_moe": _qwen3_moe,
    "qwen3_5_moe": _qwen3_5_moe,
    "gpt_oss": _gpt_oss,
    "gemma4": _gemma4,
    "deepseek_v4": deepseek_v4_tensors,
}


def _layer_types(text: ConfigFields) -> tuple[str, ...] | None:
    types = text.texts("layer_types", MAX_LAYERS)
    if types is not None and not {*types} <= {"sliding_attention", "full_attention"}:
        raise text.error("layer_types", "must hold sliding_attention and full_attention alone")
    return types


def _width(fields: ConfigFields, name: str, default: int | None = None) -> int:
    return fields.integer(name, low=1, high=MAX_WIDTH, default=default)


def _vocabulary(fields: ConfigFields, default: int | None = None, name: str = "vocab_size") -> int:
    return fields.integer(name, low=1, high=MAX_VOCABULARY, default=default)
