"""Owns how a checkpoint's routed experts are quantised: the schemes, read from config.json, and their labels.

Two dialects are understood: MLX's `quantization` (global scheme and overrides per module path) and Hugging
Face's `quantization_config` (`quant_method`). Whether tensors agree with it is `inspection`'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from mach.io.arch_adapter import MoeArchAdapter, MoeShape
from mach.io.config_file import ConfigFields

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)
# MLX's block formats have one shape each: mode → (bits, group size).
BLOCK_MODES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
MLX_MODES = ("affine", *BLOCK_MODES)

_DTYPE_LABELS = {
    "BF16": "bf16", "F16": "f16", "F32": "f32", "F64": "f64", "F8_E4M3": "fp8",
    "bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64",
}  # fmt: skip


class QuantScheme(NamedTuple):
    """One way of packing weights.

    Attributes:
        mode: `affine`, `mxfp4`, `nvfp4`, `mxfp8`, `gguf`, or a Hugging Face quant_method that MLX lacks.
        bits: per weight.
        group_size: weights that share a scale; 0 where the notion does not apply.
    """

    mode: str
    bits: int
    group_size: int


class RoutedQuantization(NamedTuple):
    """The quantisation of a checkpoint's routed experts.

    Attributes:
        scheme: what holds unless a module says otherwise; None if the experts are not quantised.
        overrides: MLX module path of a projection → its own scheme, where that differs from `scheme`.
        dtype: label of the stored dtype where nothing is quantised (`bf16`, `f32`, …), else None.
        uniform: whether every routed projection is packed alike.
    """

    scheme: QuantScheme | None
    overrides: dict[str, QuantScheme | None]
    dtype: str | None
    uniform: bool

    @property
    def mode(self) -> str:
        """The main scheme's mode, or `none`."""
        return "none" if self.scheme is None else self.scheme.mode

    @property
    def bits(self) -> int | None:
        """The main scheme's bits per weight, or None."""
        return None if self.scheme is None else self.scheme.bits

    @property
    def group_size(self) -> int | None:
        """The main scheme's weights per scale, or None."""
        return None if self.scheme is None else self.scheme.group_size

    def scheme_for(self, module_path: str) -> QuantScheme | None:
        """The scheme of one projection, by its MLX module path."""
        return self.overrides.get(module_path, self.scheme)

    @property
    def label(self) -> str:
        """For people: `affine (4-bit)`, `affine (mixed 4/6-bit)`, `bf16`."""
        schemes = [s for s in (self.scheme, *self.overrides.values()) if s is not None]
        if not schemes:
            return self.dtype or "unknown"
        modes = "+".join(dict.fromkeys(s.mode for s in schemes))
        bits = sorted({s.bits for s in schemes})
        if len(bits) == 1:
            return f"{modes} ({bits[0]}-bit)"
        return f"{modes} (mixed {'/'.join(map(str, bits))}-bit)"


def component_shapes(scheme: QuantScheme | None, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """Component → extents of one expert's projection as MLX packs it: 32-bit words along the input axis."""
    if scheme is None:
        return {"weight": (rows, columns)}
    groups = (rows, -(-columns // scheme.group_size))
    shapes: dict[str, tuple[int, ...]] = {"weight": (rows, -(-columns * scheme.bits // 32)), "scales": groups}
    if scheme.mode == "affine":
        shapes["biases"] = groups
    return shapes


def routed_quantization(
    adapter: MoeArchAdapter, config: ConfigFields, shape: MoeShape, stored_dtype: str | None
) -> RoutedQuantization:
    """What config.json says of the routed experts.

    Args:
        adapter: the checkpoint's architecture.
        config: the whole config.json.
        shape: its routed part.
        stored_dtype: safetensors dtype of an expert's weight if a header was read, for unquantised experts.

    Raises:
        ConfigError: a mode, bit width or group size that does not exist.
    """
    mlx = config.object("quantization")
    text = adapter.text_config(config)
    foreign = config.object("quantization_config") or text.object("quantization_config")
    if mlx is None and foreign is not None and "quant_method" not in foreign.values:
        mlx = foreign
    if mlx is not None:
        return _from_mlx(adapter, mlx, shape)
    if foreign is not None:
        return uniform_quantization(_from_quant_method(adapter, config, foreign))
    name = stored_dtype or config.text("torch_dtype", "") or config.text("dtype", "")
    name = name or text.text("torch_dtype", "") or text.text("dtype", "")
    return unquantized(name)


def uniform_quantization(scheme: QuantScheme) -> RoutedQuantization:
    """Every routed projection packed by `scheme`."""
    return RoutedQuantization(scheme, {}, None, True)


def unquantized(dtype: str) -> RoutedQuantization:
    """Plain weights of a dtype given by its safetensors or config name."""
    return RoutedQuantization(None, {}, _DTYPE_LABELS.get(dtype, dtype.lower()[:20] or None), True)


def _from_mlx(adapter: MoeArchAdapter, fields: ConfigFields, shape: MoeShape) -> RoutedQuantization:
    if fields.text("expert_format", "") == "gguf":
        return uniform_quantization(QuantScheme("gguf", fields.integer("bits", low=1, high=8, default=2), 0))
    scheme = _scheme(adapter, fields)
    overrides: dict[str, QuantScheme | None] = {}
    found: set[QuantScheme | None] = set()
    for layer in shape.moe_layers:
        block = adapter.switch_block(layer)
        for projection in PROJECTIONS:
            path = f"{block}.{projection}"
            own: QuantScheme | None = scheme
            value = fields.values.get(path)
            if value is False:
                own = None
            elif value is not None and value is not True:
                nested = fields.object(path)
                assert nested is not None
                own = _scheme(adapter, nested)
            found.add(own)
            if own != scheme:
                overrides[path] = own
    if len(found) == 1:  # also where every routed module overrides the global scheme alike
        return RoutedQuantization(found.pop(), {}, None, True)
    return RoutedQuantization(scheme, overrides, None, not found)


def _scheme(adapter: MoeArchAdapter, fields: ConfigFields) -> QuantScheme:
    mode = fields.text("mode", "affine")
    if mode in BLOCK_MODES:
        bits, group_size = BLOCK_MODES[mode]
        fields.integer("bits", low=bits, high=bits, default=bits)
        fields.integer("group_size", low=group_size, high=group_size, default=group_size)
        return QuantScheme(mode, bits, group_size)
    if mode != "affine":
        raise fields.error("mode", f"is {mode[:40]!r}, none of {', '.join(MLX_MODES)}")
    bits = fields.integer("bits", low=1, high=8, default=adapter.default_bits)
    group_size = fields.integer("group_size", low=1, high=1024, default=adapter.default_group_size)
    if bits not in AFFINE_BITS:
        raise fields.error("bits", f"is {bits}, none of {AFFINE_BITS}")
    if group_size not in AFFINE_GROUP_SIZES:
        raise fields.error("group_size", f"is {group_size}, none of {AFFINE_GROUP_SIZES}")
    return QuantScheme(mode, bits, group_size)


def _from_quant_method(adapter: MoeArchAdapter, config: ConfigFields, fields: ConfigFields) -> QuantScheme:
    method = fields.text("quant_method")
    if method in BLOCK_MODES:
        return QuantScheme(method, *BLOCK_MODES[method])
    if method == "fp8":
        # DeepSeek-V4 keeps its experts in fp4 beside fp8 everywhere else.
        if adapter.text_config(config).text("expert_dtype", "") == "fp4":
            return QuantScheme("mxfp4", *BLOCK_MODES["mxfp4"])
        block = fields.integers("weight_block_size", 1, 1 << 16, 2) or (0,)
        return QuantScheme("fp8", 8, block[-1])
    if method in ("awq", "gptq"):
        return QuantScheme(
            method,
            fields.integer("bits", "w_bit", low=1, high=16, default=4),
            fields.integer("group_size", "q_group_size", low=-1, high=1 << 16, default=128),
        )
    return QuantScheme(method[:40], fields.integer("bits", low=1, high=16, default=16), 0)
