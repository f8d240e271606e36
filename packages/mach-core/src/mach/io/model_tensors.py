"""Owns what a family's model is built from: the config it reads, the tensors it has besides routed experts.

The engine builds mlx-lm's models and loads them strictly: a tensor too few, too many or of another shape is
a refusal, and so is the lack of a config field that has no default, or a value that changes the result and
that the model does not compute. All show before loading, because loader and preflight both ask here. Foreign
configs are normalised here, once, by the family's module (`mach.io.families`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType

from mach.io.arch_adapter import MoeShape
from mach.io.config_file import ConfigFields
from mach.io.families import deepseek_v4, gemma4, gpt_oss, qwen3_5_moe, qwen3_moe
from mach.io.families.config_values import vocabulary
from mach.io.families.tensor_parts import Extents, Tensors
from mach.io.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES, BLOCK_MODES, QuantScheme, component_shapes
from mach.io.safetensors_header import TensorEntry

WEIGHTS_PREFIX = "model"
"""mlx-lm loads the files `model*.safetensors`, whatever the index says."""

_FAMILIES: dict[str, ModuleType] = {
    "qwen3_moe": qwen3_moe,
    "qwen3_5_moe": qwen3_5_moe,
    "gpt_oss": gpt_oss,
    "gemma4": gemma4,
    "deepseek_v4": deepseek_v4,
}
"""Family → module with `config_of`, `unsupported`, `tensors_of` and `path_of`."""


def model_config(model_type: str, config: ConfigFields, text: ConfigFields) -> ConfigFields:
    """The whole config as the family's model reads it, whatever version of the format wrote it.

    What a config leaves out has the value that the reference implementation, transformers 5, gives it.

    Args:
        model_type: the family; the config of one that has no module here is given back as it is.
        config: the whole config.json.
        text: the language model's part of it.

    Raises:
        ConfigError: a field that the model needs is missing or impossible.
    """
    if model_type not in _FAMILIES:
        return config
    for name in _NEVER_NULL:
        if text.values.get(name, "") is None:
            raise text.error(name, "is null; give its value, or leave it out")
    return ConfigFields(_FAMILIES[model_type].config_of(config, text), config.path, config.prefix)


def unsupported_value(model_type: str, normalised: ConfigFields) -> str | None:
    """Why a value of `model_config`'s result is refused: it would change the result and is not computed."""
    family = _FAMILIES.get(model_type)
    reason: str | None = None if family is None else family.unsupported(_text_of(normalised))
    return reason


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
    normalised = model_config(model_type, config, text)
    tensors: Tensors = _FAMILIES[model_type].tensors_of(normalised, _text_of(normalised), shape)
    return tensors


def _text_of(normalised: ConfigFields) -> ConfigFields:
    """The language model's part of a config, wrapped or not."""
    return normalised.object("text_config") or normalised


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
    vocabulary(config if text.find("vocab_size")[1] is None else text)  # which the engine reports
    normalised = model_config(model_type, config, text)
    if problem := unsupported_value(model_type, normalised):
        return problem
    family, inside = _FAMILIES[model_type], _text_of(normalised)
    wanted = dict(family.tensors_of(normalised, inside, shape))
    packing = _packing(config, text)
    if packing is _FOREIGN:
        return (
            "weights quantised as quantization_config says are not loaded: slice an fp8 checkpoint with "
            "mach-prune --source DIR --output OUT, which unpacks them, or make an MLX checkpoint first"
        )
    found: dict[str, TensorEntry] = {}
    elsewhere = ""
    for name, entry in others.items():
        path = family.path_of(name, inside)
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
