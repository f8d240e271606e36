"""Owns reading ranges of a source's files, and doing so ahead of who consumes them."""

from __future__ import annotations

import os
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
        self._opening = threading.Lock()

    def __enter__(self) -> ByteRanges:
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The `size` bytes of `path` from `offset` on.

        Raises:
            SidecarExportError: the file cannot be read, or ends early.
        """
        pieces = []
        try:
            fd = self._fds.get(path)
            if fd is None:
                fd = self._open(path)
            while size:
                piece = os.pread(fd, size, offset)
                if not piece:
                    raise SidecarExportError(
                        f"{path}: ends at byte {offset}, {size} bytes early: cut since it was inspected"
                    )
                pieces.append(piece)
                offset, size = offset + len(piece), size - len(piece)
        except OSError as error:
            raise SidecarExportError(f"{path}: cannot be read at byte {offset}: {error.strerror}") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _open(self, path: str) -> int:
        with self._opening:
            if path not in self._fds:
                self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._fds[path]


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
