"""Owns a memory cgroup of a test's own, of version 1 or 2, whichever this system lets it make."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


class MemoryGroup:
    """A cgroup that processes can be put into.

    Attributes:
        unified: whether it is of version 2.
    """

    def __init__(self, directory: Path, *, unified: bool) -> None:
        """The group exists. Args: directory: of the group."""
        self._directory, self.unified = directory, unified

    @property
    def limit(self) -> int:
        """Bytes beyond which the kernel kills."""
        return int(self._file("memory.max", "memory.limit_in_bytes").read_text())

    @limit.setter
    def limit(self, value: int) -> None:
        self._file("memory.max", "memory.limit_in_bytes").write_text(str(value))

    @property
    def used(self) -> int:
        """Bytes in use without page cache."""
        current = int(self._file("memory.current", "memory.usage_in_bytes").read_text())
        stat = dict(line.split() for line in (self._directory / "memory.stat").read_text().splitlines())
        return current - int(stat["inactive_file"]) - int(stat["active_file"])

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        text = self._file("memory.events", "memory.oom_control").read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def enter(self) -> None:
        """Put this process in; as a `preexec_fn`."""
        (self._directory / "cgroup.procs").write_text(str(os.getpid()))

    def _file(self, unified: str, old: str) -> Path:
        return self._directory / (unified if self.unified else old)


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group with `limit` bytes; skips the test, and says why, where none can be made."""
    refusals = []
    for root, unified in (("/sys/fs/cgroup/memory", False), ("/sys/fs/cgroup", True)):
        directory = Path(root) / f"mach-test-{os.getpid()}"
        group = MemoryGroup(directory, unified=unified)
        try:
            directory.mkdir()
            group.limit = limit
        except OSError as error:
            refusals.append(f"{root}: {error.strerror}")
            if directory.is_dir():
                directory.rmdir()
            continue
        try:
            yield group
        finally:
            directory.rmdir()
        return
    pytest.skip(f"no memory cgroup can be made here, so nothing was tested ({'; '.join(refusals)})")
