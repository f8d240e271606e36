"""Owns giving a bank's memory back to the system while the bank lives on, and why that cannot be done here.

It is done where MLX's arrays are ordinary memory of the process: on Linux without a GPU. Buffers of Metal and
CUDA belong to their drivers. It needs the native extension.
"""

from __future__ import annotations

import sys
from importlib import import_module

import mlx.core as mx

from mach_store.errors import BankResizeError
from mach_store.scatter_reader import NATIVE_MODULE


def refusal() -> str | None:
    """Why no memory can be given back here, or None."""
    if sys.platform != "linux":
        return f"giving memory back is not built for {sys.platform}"
    if mx.metal.is_available() or mx.cuda.is_available():
        return "the bank is in buffers of the GPU's driver"
    try:
        import_module(NATIVE_MODULE)
    except ImportError as error:
        return f"{NATIVE_MODULE} cannot be imported ({error})"
    return None


def release_rows(array: mx.array, rows: int) -> None:
    """Give back the whole pages behind the first `rows` rows of `array`, to which no unfinished graph refers.

    Raises:
        BankResizeError: the system refused.
    """
    try:
        import_module(NATIVE_MODULE).release_rows(array, rows)
    except OSError as error:
        raise BankResizeError(f"the system does not take memory back: madvise: {error.strerror}") from error
