"""Owns the writing of safetensors files from byte ranges, without an array library and in bounded memory.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mach.io.safetensors_header import TensorEntry

_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """One tensor to write.

    Attributes:
        name: its key.
        dtype: safetensors' name of the dtype, e.g. `BF16`.
        shape: extents.
        nbytes: size; `chunks` must bring exactly as much.
        chunks: its bytes in order, read once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    chunks: Iterable[bytes | memoryview]


def copy_of(name: str, entry: TensorEntry) -> OutputTensor:
    """A tensor that is copied byte for byte out of another safetensors file."""
    return OutputTensor(
        name=name, dtype=entry.dtype, shape=entry.shape, nbytes=entry.nbytes, chunks=_file_range(entry)
    )


def write_safetensors(path: str, tensors: list[OutputTensor]) -> None:
    """Write `path` atomically: the name appears only once every byte is on the disk.

    Raises:
        ValueError: a tensor's chunks bring more or fewer bytes than announced.
        OSError: the disk refuses.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    temporary = path + ".tmp"
    with open(temporary, "wb") as out:
        out.write(len(raw).to_bytes(8, "little"))
        out.write(raw)
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks:
                written += out.write(chunk)
            if written != tensor.nbytes:
                raise ValueError(f"{path}: {tensor.name} brought {written} bytes, not {tensor.nbytes}")
        out.flush()
        os.fsync(out.fileno())
    os.rename(temporary, path)


def _file_range(entry: TensorEntry) -> Iterator[bytes]:
    with open(entry.file, "rb") as handle:
        handle.seek(entry.start)
        left = entry.nbytes
        while left:
            chunk = handle.read(min(left, _COPY_BYTES))
            if not chunk:
                raise OSError(f"{entry.file}: ends {left} bytes early")
            left -= len(chunk)
            yield chunk
