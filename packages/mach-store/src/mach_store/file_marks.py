"""Owns whether open files still hold what they held: for bytes that have no checksum to be compared with.

A file that is replaced is no danger, because an open descriptor is the old file's. One that is written to in
place is: its size or its time of change tells. It is asked after a read, so that whatever was read before the
first such change is known to be right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


class FileMarks:
    """Size and times of open files when they were first seen."""

    def __init__(self) -> None:
        """No file yet."""
        self._marks: dict[int, tuple[str, tuple[int, int]]] = {}

    def remember(self, fd: int, path: str) -> None:
        """Mark the open file `fd` as it is now. Args: path: for messages."""
        self._marks[fd] = path, _mark(fd)

    def changed(self, fds: Iterable[int]) -> str | None:
        """The path of one of `fds` that has been written to since, or None; about a microsecond each."""
        for fd in set(fds):
            path, mark = self._marks[fd]
            if _mark(fd) != mark:
                return path
        return None


def _mark(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns
