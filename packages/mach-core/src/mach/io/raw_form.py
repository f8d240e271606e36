"""Owns what a raw form is: how a published checkpoint, before MLX, names and lays out its routed experts.

Data alone. Which forms a family has stands in `family_names`; whether a checkpoint's tensors agree with one
is `raw_experts`' business.
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT_DTYPES = ("BF16", "F16", "F32")
FP8_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
FP4_SCALE_DTYPES = ("F8_E8M0", "U8")
FP4_GROUP = 32
"""Weights that share an exponent in the fp4 encodings (OCP Microscaling Formats 1.0, MXFP4)."""

FP8_BLOCK = (128, 128)
"""Rows and columns that share a scale in the fp8 encoding where config.json is silent."""

ENCODINGS = {"plain": FLOAT_DTYPES, "fp8": ("F8_E4M3",), "fp4": ("I8", "U8")}
"""Encoding → the safetensors dtypes that its weights may have.

plain: floats. fp8: e4m3, times one scale per block of rows × columns. fp4: e2m1, two in a byte with the first
in the low four bits, times a power of two (e8m0) per 32 in a row; the weight's last extents may be
[columns / 2] or [columns / 32, 16], which are the same bytes. (Nibble order: transformers 5.23,
`integrations/mxfp4.py` and `integrations/finegrained_fp8.py`; for DeepSeek-V4 also its own
`inference/convert.py`.) MLX's mxfp4 packs eight of them into a little-endian word the same way, so that the
bytes are MLX's already.
"""


class RawProjection(NamedTuple):
    """One projection as a file names it, and the MLX projections whose rows it holds, in order."""

    name: str
    holds: tuple[str, ...]

    @property
    def label(self) -> str:
        """MLX's name where it holds one projection, its own where it holds two."""
        return self.holds[0] if len(self.holds) == 1 else self.name


class RawForm(NamedTuple):
    """One way in which published checkpoints store routed experts.

    Attributes:
        layout: `per_expert` (a tensor per expert) or `fused` (experts on axis 0, gate and up in one tensor).
        blocks: templates over `{layer}` and, per expert, `{expert}` of the path before a projection's name.
        projections: which there are, in the order of MLX's gate, up, down.
        weight: what follows a projection's name in its weight's name.
        scale: the same for its scales; None where no encoding of the form has any.
        bias: the same for its bias; None where the family has none.
        encodings: keys of ENCODINGS that its weights may have; the dtype decides.
        axes: `out_in` for rows of outputs, as MLX has them, or `in_out`.
        interleaving: where two projections share a tensor, `halves` (the first one's rows before the
            second's) or `rows` (alternating).
    """

    layout: str
    blocks: tuple[str, ...]
    projections: tuple[RawProjection, ...]
    weight: str = ".weight"
    scale: str | None = None
    bias: str | None = None
    encodings: tuple[str, ...] = ("plain",)
    axes: str = "out_in"
    interleaving: str = "halves"

    def role(self, suffix: str) -> str | None:
        """`weight`, `scale` or `bias` for what follows a projection's name; None if the form has no such."""
        if suffix == self.weight:
            return "weight"
        if suffix == self.scale:
            return "scale"
        return "bias" if suffix == self.bias else None


SEPARATE = (
    RawProjection("gate_proj", ("gate_proj",)),
    RawProjection("up_proj", ("up_proj",)),
    RawProjection("down_proj", ("down_proj",)),
)
NUMBERED = (
    RawProjection("w1", ("gate_proj",)),
    RawProjection("w3", ("up_proj",)),
    RawProjection("w2", ("down_proj",)),
)
FUSED = (RawProjection("gate_up_proj", ("gate_proj", "up_proj")), RawProjection("down_proj", ("down_proj",)))
