"""Owns the pure-Python twin of `lme_mlx_pread_ext.ScatterPlan`: slow, obvious, and tested equal to it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mach_store.row_views import byte_rows, copy_row


class ReadError(OSError):
    """A read failed or ended early; the fields are those of `lme_mlx_pread_ext.ReadError`."""

    def __init__(self, message: str, *, job: int, segment: int, errno: int) -> None:
        super().__init__(errno, message)
        self.job, self.segment = job, segment


class ChecksumError(ValueError):
    """A record's CRC-32 differs; the fields are those of `lme_mlx_pread_ext.ChecksumError`."""

    def __init__(self, job: int, expected: int, actual: int) -> None:
        super().__init__(f"record {job}: CRC-32 {actual:08x}, expected {expected:08x}")
        self.job, self.expected, self.actual = job, expected, actual


class PythonScatterPlan:
    """Reads records from disk straight into the slots of evaluated arrays with `os.preadv`."""

    def __init__(self, arrays: Sequence[mx.array], nbytes: Sequence[int], widen: Sequence[bool]) -> None:
        """As `lme_mlx_pread_ext.ScatterPlan`: see `native/README.md`."""
        if not len(arrays) == len(nbytes) == len(widen) or not arrays:
            raise ValueError("arrays, nbytes and widen must be of one length, and not empty")
        self.slots = arrays[0].shape[0]
        self.record_bytes = sum(nbytes)
        self._nbytes = list(nbytes)
        self._rows: list[np.ndarray] = []
        for array, size, wide in zip(arrays, nbytes, widen, strict=True):
            if array.shape[0] != self.slots:
                raise ValueError("all arrays must have the same number of slots")
            if array.nbytes != self.slots * size * (2 if wide else 1):
                raise ValueError(f"a slot of {array.shape} {array.dtype} does not hold {size} bytes")
            self._rows.append(byte_rows(array))

    def read(
        self,
        slots: Sequence[int],
        fds: Sequence[int],
        offsets: Sequence[int],
        crcs: Sequence[int] | None = None,
        *,
        threads: int = 1,
        direct: bool = False,
    ) -> int:
        """As `lme_mlx_pread_ext.ScatterPlan.read`, on one thread and through the page cache.

        Raises:
            ReadError: the system refused a read, or the file ended.
            ChecksumError: a record's bytes are not those that were written.
        """
        parts = len(self._rows)
        scattered = len(offsets) == len(slots) * parts and parts > 1
        if len(fds) != len(offsets) or (not scattered and len(offsets) != len(slots)):
            raise ValueError("fds and offsets must name one place per record, or one per segment")
        if crcs is not None and len(crcs) != len(slots):
            raise ValueError("crcs must have one checksum per record")
        if not 1 <= threads <= 64:
            raise ValueError(f"threads is {threads}: it must be from 1 to 64")
        if any(fd < 0 for fd in fds) or any(not 0 <= at < (1 << 63) - self.record_bytes for at in offsets):
            raise ValueError("fds must be open descriptors, and records must end below 2⁶³")
        if any(not 0 <= slot < self.slots for slot in slots):
            raise IndexError(f"slots {list(slots)} are not all below {self.slots}")
        if len(set(slots)) != len(slots):
            raise ValueError(f"slots {list(slots)} name one twice")
        if direct:
            raise ValueError("the Python reader cannot read past the page cache")
        for job, slot in enumerate(slots):
            crc = 0
            position = 0 if scattered else offsets[job]
            for part in range(parts):
                at = job * parts + part if scattered else job
                start = offsets[at] if scattered else position
                data = self._read_exactly(fds[at], start, self._nbytes[part], job, part)
                position += self._nbytes[part]
                crc = zlib.crc32(data, crc)
                copy_row(np.frombuffer(data, np.uint8), self._rows[part][slot])
            if crcs is not None and crcs[job] != crc:
                raise ChecksumError(job, crcs[job], crc)
        return len(slots) * self.record_bytes

    @staticmethod
    def _read_exactly(fd: int, offset: int, size: int, job: int, segment: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            try:
                count = os.preadv(fd, [view[done:]], offset + done)
            except OSError as error:
                message = f"record {job}: {error.strerror}"
                raise ReadError(message, job=job, segment=segment, errno=error.errno or 0) from error
            if count == 0:
                message = f"record {job}: the file ends after {done} of {size} bytes at offset {offset}"
                raise ReadError(message, job=job, segment=segment, errno=0)
            done += count
        return data
