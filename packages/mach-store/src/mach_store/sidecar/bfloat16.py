"""Owns bfloat16 for numpy, which lacks it: bit patterns in uint16, to and from float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def widen_bfloat16(patterns: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bit patterns, exactly; any shape."""
    return (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 → bfloat16 bit patterns, to nearest with ties to even; any shape, and `values` is overwritten.

    What is not a number stays so: the ones that arithmetic makes have a zero lower half, which the rounding
    cannot carry out of.
    """
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    bits += np.uint32(0x7FFF)
    bits += odd
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)
