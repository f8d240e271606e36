"""What both doors of the reader raise.

    ExpertIOError
    ├── ReadError (also OSError)            the system refused a read, or the file ended
    └── ChecksumError (also ValueError)     the bytes arrived and are not those that were written

Wrong arguments raise the ordinary ValueError, IndexError and TypeError.
"""

import os
from errno import EBADF, EINVAL

_ADVICE = {
    EBADF: "the descriptor is not open for reading: was it closed or replaced since the batch was planned?",
    EINVAL: "a descriptor opened with O_DIRECT must be read with direct=True",
}


class ExpertIOError(Exception):
    """Anything that went wrong between the disk and a bank."""


class ReadError(ExpertIOError, OSError):
    """A segment did not arrive.

    Attributes:
        job: index of the record in the call.
        segment: index of the segment in the record.
        errno: the system's error number; 0 when the file ended.
        offset: where the segment begins in its file, in bytes.
        wanted: the segment's bytes.
        got: how many of them arrived.
    """

    def __init__(self, job: int, segment: int, errno: int, offset: int, wanted: int, got: int) -> None:
        if errno == 0:
            cause = "the file ended: it is truncated or not the layout's file; verify it and export it again"
        else:
            cause = os.strerror(errno) + (f"; {_ADVICE[errno]}" if errno in _ADVICE else "")
        message = f"job {job}, segment {segment}: {got} of {wanted} bytes at offset {offset}: {cause}"
        super().__init__(errno, message)
        self.job = job
        self.segment = segment
        self.offset = offset
        self.wanted = wanted
        self.got = got

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type["ReadError"], tuple[int | None, ...]]:
        return type(self), (self.job, self.segment, self.errno, self.offset, self.wanted, self.got)


class ChecksumError(ExpertIOError, ValueError):
    """A record's bytes differ from its checksum.

    Attributes:
        job: index of the record in the call.
        expected: the CRC-32 that was given.
        actual: the CRC-32 of the bytes on disk.
    """

    def __init__(self, job: int, expected: int, actual: int) -> None:
        super().__init__(job, expected, actual)
        self.job = job
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"job {self.job}: a record's CRC-32 is {self.actual:#010x} and should be {self.expected:#010x}: "
            "the file has changed since it was written or is not the layout's; verify it and export it again"
        )
