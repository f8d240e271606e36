"""Owns one look at the memory that is left: what the kernel and the process's own cgroups say.

Linux: MemAvailable, every cgroup's limits (v2: memory.max and memory.high; v1: memory.limit_in_bytes) and
pressure-stall information. macOS: the kernel's pressure level (not run by us on a Mac).
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from mach.preflight.machine import cgroup_directories, integer_file, named_integers, sysctl

NORMAL, WARNING, CRITICAL = 1, 2, 4
"""macOS's levels of memory pressure."""
MAC_LEVEL = "kern.memorystatus_vm_pressure_level"


class MemoryReading(NamedTuple):
    """What is left at one moment.

    Attributes:
        room_bytes: what may still be taken before somebody is killed or throttled; None if nothing says so.
        source: where that comes from.
        stalled: percent of the last ten seconds in which something waited for memory (PSI `some`); 0 where
            that is not told.
        level: macOS's pressure level, NORMAL elsewhere.
    """

    room_bytes: int | None
    source: str
    stalled: float = 0.0
    level: int = NORMAL


def read_memory(root: str = "/", platform: str = sys.platform) -> MemoryReading:
    """Look now: some ten small files.

    Args:
        root: what lies above `proc` and `sys`; another in tests.
        platform: as `sys.platform`.
    """
    if platform == "darwin":
        level = sysctl(MAC_LEVEL)
        return MemoryReading(None, MAC_LEVEL, level=NORMAL if level is None else level)
    if platform != "linux":
        return MemoryReading(None, f"unknown on {platform}")
    available = named_integers(os.path.join(root, "proc/meminfo")).get("MemAvailable:")
    room, source = (
        (None, "/proc/meminfo cannot be read") if available is None else (available * 1024, "MemAvailable")
    )
    stalled = _stalled(os.path.join(root, "proc/pressure/memory"))
    for group in cgroup_directories(root):
        names = ("memory.max", "memory.high") if group.unified else ("memory.limit_in_bytes",)
        used = integer_file(group.path, "memory.current" if group.unified else "memory.usage_in_bytes")
        if used is None:
            continue
        for name in names:
            limit = integer_file(group.path, name)
            if limit is None:
                continue
            left = max(0, limit - max(0, used - _cached(group.path)))
            if room is None or left < room:
                room, source = left, name
        if group.unified and group.own:
            stalled = max(stalled, _stalled(os.path.join(group.path, "memory.pressure")))
    return MemoryReading(room, source, stalled)


def _cached(directory: str) -> int:
    """Page cache of a cgroup, which the kernel takes back before it kills anybody."""
    stat = named_integers(os.path.join(directory, "memory.stat"))
    # v1 counts the children's apart.
    both = (stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
    return sum(both)


def _stalled(path: str) -> float:
    """`avg10` of the line `some` of a PSI file; 0 where there is none."""
    try:
        with open(path) as handle:
            for line in handle:
                kind, *fields = line.split()
                if kind == "some":
                    return next((float(f[6:]) for f in fields if f.startswith("avg10=")), 0.0)
    except (OSError, ValueError):  # not in this kernel, or switched off
        return 0.0
    return 0.0
