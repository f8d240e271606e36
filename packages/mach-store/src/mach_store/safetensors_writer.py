"""Owns the writing of safetensors files from byte ranges, without an array library and in bounded memory.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mach.io.safetensors_header import TensorEntry

# In the processor's cache between read, checksum and write; larger writes take far longer on some kernels.
_COPY_BYTES = 128 << 10


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """What was written: size in bytes, and the CRC-32 of all of them."""

    nbytes: int
    crc32: int


def copy_of(name: str, entry: TensorEntry) -> OutputTensor:
    """A tensor that is copied byte for byte out of another safetensors file."""
    return OutputTensor(
        name=name,
        dtype=entry.dtype,
        shape=entry.shape,
        nbytes=entry.nbytes,
        chunks=read_range(entry.file, entry.start, entry.nbytes),
    )


def write_safetensors(
    path: str, tensors: Sequence[OutputTensor], metadata: Mapping[str, str] | None = None
) -> WrittenFile:
    """Write `path` atomically: the name appears only once every byte is on the disk.

    Args:
        path: the file to make or replace.
        tensors: what goes into it, in this order.
        metadata: further entries of the header's `__metadata__`.

    Raises:
        ValueError: a tensor's chunks bring more or fewer bytes than announced.
        OSError: the disk refuses.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx", **(metadata or {})}}
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
    raw = len(raw).to_bytes(8, "little") + raw
    crc = zlib.crc32(raw)
    temporary = path + ".tmp"
    with open(temporary, "wb") as out:
        out.write(raw)
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks:
                crc = zlib.crc32(chunk, crc)
                written += out.write(chunk)
            if written != tensor.nbytes:
                raise ValueError(f"{path}: {tensor.name} brought {written} bytes, not {tensor.nbytes}")
        out.flush()
        os.fsync(out.fileno())
    os.rename(temporary, path)
    return WrittenFile(nbytes=len(raw) + offset, crc32=crc)


def copy_file(source: str, target: str) -> WrittenFile:
    """Copy a whole file as `write_safetensors` writes one: atomically and durably.

    Raises:
        OSError: the disk refuses.
    """
    nbytes = crc = 0
    with open(source, "rb") as data, open(target + ".tmp", "wb") as out:
        while chunk := data.read(_COPY_BYTES):
            nbytes += out.write(chunk)
            crc = zlib.crc32(chunk, crc)
        out.flush()
        os.fsync(out.fileno())
    os.rename(target + ".tmp", target)
    return WrittenFile(nbytes=nbytes, crc32=crc)


def read_range(path: str, start: int, nbytes: int, chunk_bytes: int = _COPY_BYTES) -> Iterator[bytes]:
    """The bytes [start, start + nbytes) of a file, in pieces of `chunk_bytes` and a rest.

    Raises:
        OSError: the file cannot be read, or ends before.
    """
    with open(path, "rb") as handle:
        handle.seek(start)
        left = nbytes
        while left:
            chunk = handle.read(min(left, chunk_bytes))
            if not chunk:
                raise OSError(f"{path}: ends {left} bytes early")
            left -= len(chunk)
            yield chunk
