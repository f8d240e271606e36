"""Owns reading ranges of a source's files into buffers that are used again, ahead of who consumes them."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mach_store.errors import SidecarExportError

READ_AHEAD = 2
"""Experts that are read while one is written: enough to keep a disk busy, few enough to weigh nothing."""

Item = TypeVar("Item")


class ByteRanges:
    """Descriptors of the source's files, opened once each; usable from several threads."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._fds: dict[str, int] = {}
        self._buffers = _Buffers()
        self._opening = threading.Lock()

    def __enter__(self) -> ByteRanges:
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def read(self, path: str, offset: int, size: int) -> memoryview:
        """The `size` bytes of `path` from `offset` on.

        Raises:
            SidecarExportError: the file cannot be read, or ends early.
        """
        view = memoryview(self._buffers.take(size))
        done = 0
        try:
            fd = self._fds.get(path)
            if fd is None:
                fd = self._open(path)
            while done < size:
                count = os.preadv(fd, [view[done:]], offset + done)
                if count == 0:
                    raise SidecarExportError(
                        f"{path}: ends at byte {offset + done}, {size - done} bytes early: cut since it was "
                        "inspected"
                    )
                done += count
        except OSError as error:
            raise SidecarExportError(f"{path}: cannot be read at byte {offset}: {error.strerror}") from error
        return view.toreadonly()

    def _open(self, path: str) -> int:
        with self._opening:
            if path not in self._fds:
                self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._fds[path]


class _Buffers:
    """Buffers that go round: fresh memory for every read would cost more than the read, in page faults.

    Nobody gives a buffer back. One to which nothing refers any more, no view of it either, is free.
    """

    def __init__(self) -> None:
        self._all: dict[int, list[bytearray]] = {}
        self._lock = threading.Lock()

    def take(self, size: int) -> bytearray:
        with self._lock:
            same = self._all.setdefault(size, [])
            for index in range(len(same)):
                if sys.getrefcount(same[index]) == _FREE:
                    return same[index]
            same.append(bytearray(size))
            return same[-1]


def _references() -> int:
    listed = [bytearray(1)]
    return sys.getrefcount(listed[0])


_FREE = _references()
"""What `sys.getrefcount` gives for an element of a list that nothing else refers to."""


def read_ahead(make: Callable[[int], Item], numbers: Sequence[int]) -> Iterator[Item]:
    """`make(number)` for every number, in order, with READ_AHEAD of them under way in other threads.

    Whatever `make` raises is raised here. When the iterator is closed, what is under way is waited for.
    """
    with ThreadPoolExecutor(READ_AHEAD, "mach-export") as pool:
        pending: deque[Future[Item]] = deque()
        try:
            for number in numbers:
                pending.append(pool.submit(make, number))
                if len(pending) > READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
