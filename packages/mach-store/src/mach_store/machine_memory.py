"""Owns what this process asks of the machine's memory: how much it may take, and how much it has taken."""

from __future__ import annotations

import os
import resource
import sys
from typing import NamedTuple

from mach.preflight.machine import this_machine


class AvailableMemory(NamedTuple):
    """Bytes that can be allocated now without swapping or being killed, and where that is known from."""

    nbytes: int
    source: str


def available_memory() -> AvailableMemory:
    """The memory that is available now, as the preflight sees it too; where it cannot say, all there is."""
    machine = this_machine()
    if machine.available_bytes is not None:
        return AvailableMemory(machine.available_bytes, machine.source)
    return AvailableMemory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "all memory")


def peak_rss_bytes() -> int:
    """The most memory this process has had resident so far, in bytes.

    On Linux from the kernel's high-water mark of this program: getrusage's also counts what the parent had
    when it started us.
    """
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
