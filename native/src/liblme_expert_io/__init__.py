"""Batched reads of expert records into any writable buffers, without MLX: a C library and a ctypes door.

Other programs take the library and the header from here: `library_path()`, `include_path()`.
"""

from liblme_expert_io.errors import ChecksumError, ExpertIOError, ReadError
from liblme_expert_io.library import (
    crc32,
    crc32_implementations,
    crc32_with,
    include_path,
    library_path,
    read_records,
)

__all__ = [
    "ChecksumError",
    "ExpertIOError",
    "ReadError",
    "crc32",
    "crc32_implementations",
    "crc32_with",
    "include_path",
    "library_path",
    "read_records",
]
