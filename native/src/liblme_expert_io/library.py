"""The ctypes door: mirrors the structs of lme_expert_io.h and turns status codes into exceptions.

Owns the conversion of Python's lists and buffers; every check of their values is the library's own, except
that a number fits its C type, which ctypes would cut silently.
"""

import ctypes
import functools
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from liblme_expert_io.errors import ChecksumError, ReadError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_ABI_VERSION = 1
_OK, _INVALID, _OUT_OF_RANGE, _READ, _CHECKSUM, _NO_MEMORY = range(6)
_WIDEN = 1
_DIRECT, _SCATTERED = 1, 2


class _Segment(ctypes.Structure):
    _fields_ = [
        ("bank", ctypes.c_void_p),
        ("bank_size", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("segments", ctypes.POINTER(_Segment)),
        ("segment_count", ctypes.c_size_t),
        ("slot_count", ctypes.c_uint64),
        ("jobs", ctypes.c_size_t),
        ("slots", ctypes.c_void_p),
        ("fds", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("crcs", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    ]


class _Failure(ctypes.Structure):
    _fields_ = [
        ("job", ctypes.c_uint64),
        ("segment", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("wanted", ctypes.c_uint64),
        ("got", ctypes.c_uint64),
        ("error", ctypes.c_int32),
        ("expected", ctypes.c_uint32),
        ("actual", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("message", ctypes.c_char * 256),
    ]


def library_path() -> Path:
    """The shared library, for linking or dlopen."""
    return Path(__file__).with_name(f"liblme_expert_io.{'dylib' if sys.platform == 'darwin' else 'so'}")


def include_path() -> Path:
    """The folder that holds lme_expert_io.h."""
    return Path(__file__).with_name("include")


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))  # releases the GIL around every call
    library.lme_expert_io_abi_version.restype = ctypes.c_int32
    found = library.lme_expert_io_abi_version()
    if found != _ABI_VERSION:
        raise ImportError(
            f"{library_path()} has ABI version {found} and this package needs {_ABI_VERSION}: "
            "install mach-native again"
        )
    library.lme_expert_io_read.restype = ctypes.c_int32
    library.lme_expert_io_read.argtypes = [
        ctypes.POINTER(_Batch),
        ctypes.POINTER(_Failure),
        ctypes.POINTER(ctypes.c_uint64),
    ]
    library.lme_expert_io_crc32_count.restype = ctypes.c_size_t
    library.lme_expert_io_crc32_name.restype = ctypes.c_char_p
    library.lme_expert_io_crc32_name.argtypes = [ctypes.c_size_t]
    library.lme_expert_io_crc32_with.restype = ctypes.c_uint32
    library.lme_expert_io_crc32_with.argtypes = [
        ctypes.c_size_t,
        ctypes.c_uint32,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return library


def _numbers(typecode: str, values: Sequence[int], name: str) -> "array[int]":
    try:
        return array(typecode, values)
    except OverflowError:
        bits = 8 * array(typecode).itemsize
        kind = "unsigned" if typecode.isupper() else "signed"
        raise ValueError(
            f"{name} holds a number that does not fit in {bits} bits, {kind}: {list(values)}"
        ) from None


def _address(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]


def _writable(buffer: "WriteableBuffer") -> "ctypes.Array[ctypes.c_char]":
    view = memoryview(buffer).cast("B")
    return (ctypes.c_char * view.nbytes).from_buffer(view)  # TypeError when read-only


def read_records(
    banks: Sequence["WriteableBuffer"],
    nbytes: Sequence[int],
    slots: Sequence[int],
    fds: Sequence[int],
    offsets: Sequence[int],
    crcs: Sequence[int] | None = None,
    *,
    widen: Sequence[bool] | None = None,
    threads: int = 4,
    direct: bool = False,
) -> int:
    """Fill `slots` of `banks` with one record each, by the rules of `lme_mlx_pread_ext.ScatterPlan.read`.

    `banks[s]` is a writable C-contiguous buffer (bytearray, numpy array, mmap) of whole slots of `nbytes[s]`
    bytes each, or twice as many where `widen[s]` (bfloat16 on disk, float32 in the bank). All banks have the
    same number of slots. `fds` and `offsets` have one entry per slot, or one per slot and segment.

    Returns:
        The bytes read.

    Raises:
        TypeError: a bank is read-only. BufferError, ValueError: a bank is not contiguous; an argument is out
        of its range; nothing has been written. IndexError: a slot does not exist; nothing has been written.
        ReadError, ChecksumError: the slots of the call may hold anything.
    """
    widened = [False] * len(banks) if widen is None else list(widen)
    if not banks or len(nbytes) != len(banks) or len(widened) != len(banks):
        raise ValueError(
            f"there are {len(banks)} banks, {len(nbytes)} nbytes and {len(widened)} widen: "
            "give one of each per segment"
        )
    if any(size < 1 for size in nbytes):
        raise ValueError(f"nbytes must be at least 1: {list(nbytes)}")
    memory = [_writable(bank) for bank in banks]
    slot_count = len(memory[0]) // (nbytes[0] * (2 if widened[0] else 1))
    segments = (_Segment * len(banks))(
        *(
            _Segment(ctypes.addressof(m), len(m), size, _WIDEN if w else 0, 0)
            for m, size, w in zip(memory, nbytes, widened, strict=True)
        )
    )
    # Kept in variables until the call is over: the batch holds their addresses only.
    slot_numbers = _numbers("q", slots, "slots")
    fd_numbers = _numbers("i", fds, "fds")
    offset_numbers = _numbers("q", offsets, "offsets")
    crc_numbers = None if crcs is None else _numbers("I", crcs, "crcs")
    if crc_numbers is not None and len(crc_numbers) != len(slot_numbers):
        raise ValueError(
            f"there are {len(slots)} slots and {len(crc_numbers)} crcs: give one per slot, or None"
        )
    places = len(fd_numbers)
    if places != len(offset_numbers) or places not in (len(slot_numbers), len(slot_numbers) * len(banks)):
        raise ValueError(
            f"there are {len(slots)} slots of {len(banks)} segments, {places} fds and {len(offset_numbers)} "
            "offsets: give one fd and one offset per slot, or per slot and segment"
        )
    flags = (_DIRECT if direct else 0) | (_SCATTERED if places != len(slot_numbers) else 0)
    batch = _Batch(
        segments,
        len(segments),
        slot_count,
        len(slot_numbers),
        _address(slot_numbers),
        _address(fd_numbers),
        _address(offset_numbers),
        # An empty array has no address, and no checksum to check either.
        _address(crc_numbers) if crc_numbers else None,
        _numbers("i", [threads], "threads")[0],
        flags,
    )
    failure = _Failure()
    bytes_read = ctypes.c_uint64()
    status = _library().lme_expert_io_read(
        ctypes.byref(batch), ctypes.byref(failure), ctypes.byref(bytes_read)
    )
    if status != _OK:
        raise _error(status, failure)
    return bytes_read.value


def _error(status: int, failure: _Failure) -> Exception:
    if status == _READ:
        return ReadError(
            failure.job, failure.segment, failure.error, failure.offset, failure.wanted, failure.got
        )
    if status == _CHECKSUM:
        return ChecksumError(failure.job, failure.expected, failure.actual)
    if status == _NO_MEMORY:
        return MemoryError("no memory for the batch")
    message = failure.message.decode(errors="replace")
    return IndexError(message) if status == _OUT_OF_RANGE else ValueError(message)


def crc32(data: "ReadableBuffer", value: int = 0) -> int:
    """CRC-32 of `data`, going on from `value`: equal to `zlib.crc32`, several times as fast."""
    return crc32_with(0, data, value)


def crc32_implementations() -> tuple[str, ...]:
    """The implementations that this CPU can run, fastest first; the first is in use."""
    library = _library()
    names = (library.lme_expert_io_crc32_name(i) for i in range(library.lme_expert_io_crc32_count()))
    return tuple(name.decode() for name in names)


def crc32_with(index: int, data: "ReadableBuffer", value: int = 0) -> int:
    """CRC-32 by one of `crc32_implementations()`, named by its index, so that tests reach each of them."""
    if not 0 <= index < _library().lme_expert_io_crc32_count():
        raise IndexError(f"there is no CRC-32 implementation {index}: see crc32_implementations()")
    if not 0 <= value < 1 << 32:
        raise ValueError(f"value is {value}: a CRC-32 has 32 bits")
    view = memoryview(data).cast("B")
    # ctypes takes the address of bytes and of writable buffers only; a read-only view of anything else is
    # copied.
    held: object = data if isinstance(data, bytes) else view.tobytes() if view.readonly else _writable(view)
    pointer = ctypes.cast(held, ctypes.c_char_p)  # type: ignore[arg-type]
    return int(_library().lme_expert_io_crc32_with(index, value, pointer, view.nbytes))
