"""Owns the widening of fp8 weights with a scale per block to bfloat16, a band of blocks in memory at a time.

A weight is its float8 (E4M3) value times the scale of the block it lies in. Scales stand in
`<weight>_scale_inv` (float) or in `<module>.scale` (float, or powers of two as E8M0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mach.io.raw_form import FP8_SCALE_DTYPES
from mach.io.safetensors_header import TensorEntry
from mach_store.errors import PruneError
from mach_store.safetensors_writer import read_range
from mach_store.sidecar.fp8_blocks import decode_blocks, decode_scales

FP8 = "F8_E4M3"


def scale_of(name: str, tensors: Mapping[str, TensorEntry]) -> str | None:
    """The name of the block scales of the tensor `name`, or None if there are none."""
    for candidate in (f"{name}_scale_inv", f"{name.removesuffix('weight')}scale"):
        if candidate != name and candidate in tensors:
            return candidate
    return None


def require_blocks(name: str, entry: TensorEntry, scale: TensorEntry, block: tuple[int, int]) -> None:
    """Check that `scale` has one number per block of `entry`.

    Raises:
        PruneError: it has others, or either is of a dtype that is not known here.
    """
    if entry.dtype != FP8 or len(entry.shape) != 2:
        raise PruneError(f"{entry.file}: {name} ({entry.dtype} {list(entry.shape)}) is not an fp8 matrix")
    wanted = tuple(-(-extent // size) for extent, size in zip(entry.shape, block, strict=True))
    if scale.shape != wanted or scale.dtype not in FP8_SCALE_DTYPES:
        raise PruneError(
            f"{scale.file}: the scales of {name} are {scale.dtype} {list(scale.shape)}, but blocks of "
            f"{block[0]} x {block[1]} make them {list(wanted)} floats"
        )


def widened(
    entry: TensorEntry, scale: TensorEntry, block: tuple[int, int], kept: Sequence[int] | None = None
) -> Iterator[bytes]:
    """bfloat16 bytes of `entry`'s rows, or of the rows `kept`, ascending.

    Raises:
        PruneError: a scale is no finite number.
    """
    rows, columns = entry.shape
    raw = b"".join(read_range(scale.file, scale.start, scale.nbytes))
    scales = decode_scales(np.frombuffer(raw, np.uint8), scale.dtype).reshape(scale.shape)
    if not np.isfinite(scales).all():
        raise PruneError(f"{scale.file}: scales hold what is no finite number: fetch the file again")
    wanted = np.ones(rows, bool)
    if kept is not None:
        wanted[:] = False
        wanted[list(kept)] = True
    for band, chunk in enumerate(read_range(entry.file, entry.start, entry.nbytes, block[0] * columns)):
        codes = np.frombuffer(chunk, np.uint8).reshape(-1, columns)
        values = decode_blocks(codes, scales[band : band + 1], block)
        yield values[wanted[band * block[0] : band * block[0] + len(values)]].tobytes()
