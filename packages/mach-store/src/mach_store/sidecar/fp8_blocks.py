"""Owns the decoding of fp8 weights with a scale per block into bfloat16; knows nothing of files or names.

e4m3 is that of the OCP 8-bit Floating Point Specification 1.0: bias 7, no infinities, 0x7F and 0xFF are not
numbers. e8m0 is that of the OCP Microscaling Formats 1.0: 2^(byte - 127), and 0xFF is not a number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mach_store.sidecar.bfloat16 import round_to_bfloat16, widen_bfloat16

Bytes = NDArray[np.uint8]


def _e4m3_table() -> NDArray[np.float32]:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa / 8.0 * 2.0**-6, (1 + mantissa / 8.0) * 2.0 ** (exponent - 7.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


def _e8m0_table() -> NDArray[np.float32]:
    values = 2.0 ** (np.arange(256) - 127.0)
    values[255] = np.nan
    return values.astype(np.float32)


E4M3 = _e4m3_table()
E8M0 = _e8m0_table()


def decode_scales(raw: Bytes, dtype: str) -> NDArray[np.float32]:
    """Scales of any stored kind as float32, exactly.

    Args:
        raw: their bytes.
        dtype: safetensors' name: F32, BF16, F16, or F8_E8M0 and U8 for powers of two.
    """
    if dtype in ("F8_E8M0", "U8"):
        return E8M0[raw]
    if dtype == "BF16":
        return widen_bfloat16(raw.view(np.uint16))
    return raw.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def decode_blocks(weight: Bytes, scales: NDArray[np.float32], block: tuple[int, int]) -> NDArray[np.uint16]:
    """The weights as bfloat16 bit patterns.

    Each is the float32 product of its e4m3 value and its block's scale, rounded to bfloat16 once, to nearest
    with ties to even. That product is exact where the scale is a power of two or a bfloat16.

    Args:
        weight: e4m3 codes, [rows, columns].
        scales: [rows / block rows, columns / block columns], both rounded up.
        block: rows and columns that share a scale.
    """
    rows, columns = weight.shape
    result = np.empty((rows, columns), np.uint16)
    for index, first in enumerate(range(0, rows, block[0])):
        # One block row at a time stays in the processor's cache.
        values = E4M3[weight[first : first + block[0]]]
        values *= np.repeat(scales[index], block[1])[:columns]
        result[first : first + block[0]] = round_to_bfloat16(values)
    return result
