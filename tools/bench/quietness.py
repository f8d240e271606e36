"""Owns the question what else the machine did while a benchmark ran (Linux; elsewhere it cannot tell)."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_WORKING = (0, 1, 2, 5, 6)
"""Columns of /proc/stat's first line: user, nice, system, irq, softirq."""


class Quietness:
    """Counts from its making on."""

    def __init__(self) -> None:
        """Begin."""
        self._began, self._all, self._own = time.monotonic(), _seconds_of_all(), _seconds_of_ours()

    def others(self) -> str:
        """CPUs that other processes kept busy on average, for a table; empty where it is not known.

        Children count as ours once they have ended.
        """
        if not _STAT.exists():
            return ""
        elapsed = time.monotonic() - self._began
        others = _seconds_of_all() - self._all - (_seconds_of_ours() - self._own)
        return f"{max(0.0, others) / elapsed:.2f}"


def _seconds_of_all() -> float:
    if not _STAT.exists():
        return 0.0
    ticks = [int(word) for word in _STAT.read_text().splitlines()[0].split()[1:]]
    return float(sum(ticks[column] for column in _WORKING)) / os.sysconf("SC_CLK_TCK")


def _seconds_of_ours() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
