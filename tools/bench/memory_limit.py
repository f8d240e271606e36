"""Owns a limit on the memory of child processes that the kernel enforces: a cgroup, else RLIMIT_DATA."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

_GROUPS = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max"),
)
"""Where a memory cgroup is made, of version 1 and 2, and the file that bounds it."""


class MemoryLimit:
    """Processes that enter have so much memory together; who needs more is killed (status -9).

    Attributes:
        kind: `cgroup`, which counts the page cache too, or `RLIMIT_DATA`, per process and without it.
    """

    def __init__(self, limit: int) -> None:
        """Args: limit: bytes."""
        self.limit = limit
        self._group: Path | None = None
        self.kind = "RLIMIT_DATA"

    def __enter__(self) -> MemoryLimit:
        for root, bound in _GROUPS:
            group = Path(root) / f"mach-bench-{os.getpid()}-{id(self):x}"
            try:
                group.mkdir()
                (group / bound).write_text(str(self.limit))
            except OSError:
                if group.is_dir():
                    group.rmdir()
                continue
            self._group, self.kind = group, "cgroup"
            break
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.rmdir()

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run `command` inside the limit; a kill shows as exit status -9."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=900, check=False, preexec_fn=self.enter()
        )

    def enter(self) -> Callable[[], None]:
        """What a child calls before it becomes its program (`preexec_fn`)."""
        group, limit = self._group, self.limit

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            else:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        return enter
