"""Owns asking the system for huge pages behind a bank's arrays, where it gives them on request (Linux, CPU).

Weights are read from end to end for every token: with small pages the processor looks up an address for every
4 KiB of them.
"""

from __future__ import annotations

from importlib import import_module

import mlx.core as mx

from mach_store import page_return
from mach_store.errors import StoreError
from mach_store.scatter_reader import NATIVE_MODULE


def use_huge_pages(array: mx.array) -> int:
    """Ask for them behind a fresh, evaluated `array`, whose values become zeros.

    Returns:
        The bytes that were asked for; 0 where there are none to be had, as with small arrays.

    Raises:
        StoreError: there is not enough memory for the array.
    """
    if page_return.refusal() is not None:
        return 0  # the arrays are no ordinary memory of a Linux process
    try:
        asked: int = import_module(NATIVE_MODULE).use_huge_pages(array)
    except OSError as error:
        raise StoreError(
            f"there is no memory for {array.nbytes} bytes of the expert bank ({error.strerror}): "
            "lower --expert-cache-gb"
        ) from error
    return asked
