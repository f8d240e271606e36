"""Owns what is known of this machine's memory: how much there is, how much is free, and for whom."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import NamedTuple

from mach.settings import expert_kernels_wanted

NATIVE_KERNELS = "lme_cpu_kernels"


class Machine(NamedTuple):
    """This machine as the memory verdict sees it; None where it cannot be known.

    Attributes:
        backend: `metal` on Apple Silicon, else `cpu`.
        total_bytes: memory that a process could ever have: RAM, or a container's limit.
        available_bytes: what an engine started now could take without swapping or being killed.
        source: where `available_bytes` comes from.
        kernels: whether native CPU kernels would compute, which take experts as they are stored.
    """

    backend: str
    total_bytes: int | None
    available_bytes: int | None
    source: str
    kernels: bool = False


def this_machine() -> Machine:
    """The machine that this runs on."""
    machine = _memory()
    kernels = machine.backend == "cpu" and expert_kernels_wanted() and find_spec(NATIVE_KERNELS) is not None
    return machine._replace(kernels=kernels)


def _memory() -> Machine:
    if sys.platform == "darwin":
        return _mac()
    if sys.platform == "linux":
        return linux_machine("/")
    return Machine("cpu", None, None, f"unknown on {sys.platform}")


def linux_machine(root: str) -> Machine:
    """A Linux machine, from the files below `root`: MemAvailable, or less where a cgroup says so."""
    meminfo = named_integers(os.path.join(root, "proc/meminfo"))
    total, available = meminfo.get("MemTotal:"), meminfo.get("MemAvailable:")
    if total is None or available is None:
        return Machine("cpu", None, None, "/proc/meminfo cannot be read")
    total, available, source = total * 1024, available * 1024, "MemAvailable"
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        if limit - used < available:
            available, source = max(0, limit - used), "cgroup limit"
    return Machine("cpu", total, available, source)


class CgroupDirectory(NamedTuple):
    """A memory cgroup that this process is in: the own one, or one above it.

    Attributes:
        path: its directory.
        unified: whether it is of version 2.
        own: whether the process is directly in it.
    """

    path: str
    unified: bool
    own: bool


def cgroup_directories(root: str) -> list[CgroupDirectory]:
    """The memory cgroups above this process; empty where there are none."""
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as handle:
            lines = handle.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            mount, unified = "sys/fs/cgroup", True
        elif "memory" in controllers.split(","):
            mount, unified = "sys/fs/cgroup/memory", False
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            directory = os.path.join(root, mount, *parts[:depth])
            found.append(CgroupDirectory(directory, unified, depth == len(parts)))
    return found


def _cgroup_limits(root: str) -> list[tuple[int, int]]:
    """(limit, use that cannot be reclaimed) of every cgroup above this process."""
    limits = []
    for group in cgroup_directories(root):
        names = ("memory.max", "memory.current")
        if not group.unified:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (integer_file(group.path, name) for name in names)
        if limit is not None and used is not None:
            cached = named_integers(os.path.join(group.path, "memory.stat")).get("inactive_file", 0)
            limits.append((limit, max(0, used - cached)))
    return limits


def integer_file(directory: str, name: str) -> int | None:
    """The integer in a kernel file; None where there is no such file, or it holds a word like `max`."""
    try:
        with open(os.path.join(directory, name)) as handle:
            return int(handle.read(64))
    except (OSError, ValueError):
        return None


def named_integers(path: str) -> dict[str, int]:
    """The `name value …` lines of a kernel file; empty if there is none."""
    pairs = {}
    try:
        with open(path) as handle:
            for line in handle:
                name, *rest = line.split()
                if rest and rest[0].isdigit():
                    pairs[name] = int(rest[0])
    except OSError:
        return {}
    return pairs


def _mac() -> Machine:
    backend = "metal" if os.uname().machine == "arm64" else "cpu"
    total = sysctl("hw.memsize")
    if total is None:
        return Machine(backend, None, None, "sysctl hw.memsize failed")
    return mac_machine(backend, total, (sysctl("iogpu.wired_limit_mb") or 0) << 20)


def mac_machine(backend: str, total: int, wired_limit: int) -> Machine:
    """A Mac with `total` bytes; Metal's recommended working set is estimated unless a wired limit is set.

    Asking Metal itself would need MLX. Without a limit, macOS recommends about two thirds of the memory up
    to 36 GiB and three quarters above (observed by users of several engines; not measured by us).
    """
    if wired_limit:
        return Machine(backend, total, min(wired_limit, total), "iogpu.wired_limit_mb")
    share = total * 2 // 3 if total <= 36 << 30 else total * 3 // 4
    return Machine(backend, total, share, "Metal's recommended working set, estimated")


def sysctl(name: str) -> int | None:
    """An integer that macOS's kernel tells; None if it does not."""
    import ctypes.util  # noqa: PLC0415 - slow to import, and of no use elsewhere

    library = ctypes.CDLL(ctypes.util.find_library("c"))
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
    failed = library.sysctlbyname(
        name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return None if failed else value.value
