"""Owns what mach-native's CPU kernels can compute with as it is stored; nothing is loaded here.

The memory model and the loader ask the same function: what the kernels do not take is held in float32. That
the kernels agree is tested where they are, in mach-store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

_AFFINE_BITS, _AFFINE_GROUPS = (4, 8), (32, 64, 128)
_DTYPES = frozenset(("float32", "bfloat16", "F32", "BF16", "uint32", "uint8", "U32", "U8"))


class Packing(Protocol):
    """How weights are packed, whoever says so."""

    @property
    def mode(self) -> str:
        """As in `mx.quantize`."""

    @property
    def bits(self) -> int:
        """Per weight."""

    @property
    def group_size(self) -> int:
        """Weights per scale."""


def kernels_take(packings: Iterable[Packing | None], dtypes: Iterable[str]) -> bool:
    """Whether the kernels compute with experts in just the form in which they are stored.

    Args:
        packings: of the projections; None for plain floats.
        dtypes: of all tensors, as a sidecar or as safetensors spell them.
    """
    return all(_takes(packing) for packing in packings) and _DTYPES.issuperset(dtypes)


def _takes(packing: Packing | None) -> bool:
    if packing is None:
        return True
    if packing.mode == "affine":
        return packing.bits in _AFFINE_BITS and packing.group_size in _AFFINE_GROUPS
    return (packing.mode, packing.bits, packing.group_size) == ("mxfp4", 4, 32)
