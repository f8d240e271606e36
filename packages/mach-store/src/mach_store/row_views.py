"""Owns the view of an MLX array's memory as rows of bytes, for writing into it past MLX.

MLX is not told of such writes: whoever makes them sees to it that no unfinished graph refers to the rows.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def byte_rows(array: mx.array) -> NDArray[np.uint8]:
    """The memory of `array` (evaluated, row-contiguous) as [first extent, bytes of the rest], not copied."""
    # numpy has no bfloat16, so the bytes are looked at as 16-bit integers.
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.array(plain, copy=False).reshape(array.shape[0], -1).view(np.uint8)


def copy_row(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """Copy one row's bytes; into a row twice as long bfloat16 values are widened to float32, exactly."""
    if source.size == target.size:
        target[:] = source
        return
    assert target.size == 2 * source.size, "a row is as long as its source, or it is the wide one"
    words = target.view(np.uint32)
    words[:] = source.view(np.uint16)
    words <<= 16
