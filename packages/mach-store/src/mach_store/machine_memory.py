"""Owns the question how much memory this process may take, and how much it has taken."""

from __future__ import annotations

import os
import resource
import sys

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def available_bytes() -> int:
    """Bytes that can be allocated now without swapping or being killed.

    On Linux the smaller of MemAvailable and what the cgroup's limit leaves (its page cache counted as free);
    elsewhere the machine's memory.
    """
    if sys.platform != "linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_named_value("/proc/meminfo", "MemAvailable:") * 1024]
    for limit, usage, stat in _CGROUPS:
        try:
            with open(limit) as a, open(usage) as b:
                bound, used = a.read().strip(), int(b.read())
            cache = _named_value(stat, "inactive_file")
        except (OSError, ValueError):
            continue
        if bound != "max":
            limits.append(max(0, int(bound) - used + cache))
    return min(limits)


def peak_rss_bytes() -> int:
    """The most memory this process has had resident so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _named_value(path: str, name: str) -> int:
    """The integer behind `name` in a file of `name value` lines."""
    with open(path) as handle:
        for line in handle:
            if line.startswith(name):
                return int(line.split()[1])
    raise ValueError(f"{path} has no {name}")
