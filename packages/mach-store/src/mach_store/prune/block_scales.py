"""Owns the widening of fp8 weights with a scale per block to bfloat16, a band of blocks in memory at a time.

A weight is its float8 (E4M3) value times the scale of the block it lies in. Scales stand in
`<weight>_scale_inv` (float) or in `<module>.scale` (float, or powers of two as E8M0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mach.io.inspection import CheckpointInspection
from mach.io.safetensors_header import TensorEntry
from mach_store.errors import PruneError
from mach_store.safetensors_writer import read_range

FP8 = "F8_E4M3"
DEFAULT_BLOCK = (128, 128)


def scale_of(name: str, tensors: Mapping[str, TensorEntry]) -> str | None:
    """The name of the block scales of the tensor `name`, or None if there are none."""
    for candidate in (f"{name}_scale_inv", f"{name.removesuffix('weight')}scale"):
        if candidate != name and candidate in tensors:
            return candidate
    return None


def block_size(inspection: CheckpointInspection) -> tuple[int, int]:
    """Rows and columns that share a scale, as config.json's quantization_config says.

    Raises:
        ConfigError: it says something else than two positive numbers.
        PruneError: it says more or fewer than two.
    """
    fields = inspection.config.object("quantization_config")
    fields = fields or inspection.text_config.object("quantization_config")
    sizes = None if fields is None else fields.integers("weight_block_size", 1, 1 << 16, 2)
    if sizes is None:
        return DEFAULT_BLOCK
    if len(sizes) != 2:
        raise PruneError(
            f"{inspection.config.path}: weight_block_size must hold two numbers, rows and columns"
        )
    return sizes[0], sizes[1]


def require_blocks(name: str, entry: TensorEntry, scale: TensorEntry, block: tuple[int, int]) -> None:
    """Check that `scale` has one number per block of `entry`.

    Raises:
        PruneError: it has others, or either is of a dtype that is not known here.
    """
    if entry.dtype != FP8 or len(entry.shape) != 2:
        raise PruneError(f"{entry.file}: {name} ({entry.dtype} {list(entry.shape)}) is not an fp8 matrix")
    wanted = tuple(-(-extent // size) for extent, size in zip(entry.shape, block, strict=True))
    if scale.shape != wanted or scale.dtype not in ("F32", "BF16", "F16", "F8_E8M0"):
        raise PruneError(
            f"{scale.file}: the scales of {name} are {scale.dtype} {list(scale.shape)}, but blocks of "
            f"{block[0]} x {block[1]} make them {list(wanted)} floats"
        )


def widened(
    entry: TensorEntry, scale: TensorEntry, block: tuple[int, int], kept: Sequence[int] | None = None
) -> Iterator[bytes]:
    """bfloat16 bytes of `entry`'s rows, or of the rows `kept`, ascending."""
    rows, columns = entry.shape
    scales = _floats(scale)
    wanted = np.ones(rows, bool)
    if kept is not None:
        wanted[:] = False
        wanted[list(kept)] = True
    for band, chunk in enumerate(read_range(entry.file, entry.start, entry.nbytes, block[0] * columns)):
        values = _E4M3[np.frombuffer(chunk, np.uint8).reshape(-1, columns)]
        values *= np.repeat(scales[band], block[1])[:columns]
        chosen = wanted[band * block[0] : band * block[0] + len(values)]
        yield _bfloat16(values[chosen]).tobytes()


def _e4m3_table() -> np.ndarray:
    """The 256 values of float8 E4M3 (FN): bias 7, no infinities, 0x7f and 0xff not numbers."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


_E4M3 = _e4m3_table()


def _floats(entry: TensorEntry) -> np.ndarray:
    raw = np.frombuffer(b"".join(read_range(entry.file, entry.start, entry.nbytes)), np.uint8)
    if entry.dtype == "F8_E8M0":
        return np.exp2(raw.astype(np.float32) - 127).reshape(entry.shape)
    if entry.dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
    return (
        raw.view(np.float16 if entry.dtype == "F16" else np.float32).astype(np.float32).reshape(entry.shape)
    )


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
