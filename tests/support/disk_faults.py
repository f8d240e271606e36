"""Owns faults of a disk for a child process: a library for LD_PRELOAD, and the control of it while it runs.

Positional reads of files whose path has a given part in it fail, end early, are cut short, interrupted, late,
or bring a flipped bit, each with its probability, decided by a seed; or they wait until they are let go.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

SETTINGS = ("seed", "fails", "ends", "flips", "interrupts", "shortened", "delays", "delay_us", "stalled")
"""What can be set: the words of the control file, in order. Probabilities are per mille of the reads."""

COUNTS = ("calls", "failed", "ended", "flipped", "interrupted", "cut", "delayed", "waiting")
"""What is told: the words after those."""

_BYTES = 4 * (len(SETTINGS) + len(COUNTS))


class DiskFaults:
    """The control of one disk's faults, for all children that have its `environment`."""

    def __init__(self, directory: Path, paths: str = "expert_sidecar") -> None:
        """Build the library. Args: directory: for its files; paths: a part of the paths concerned."""
        self._library, self._control = directory / "faulty_read.so", directory / "faulty_control"
        self._paths = paths
        compiler = shutil.which("cc")
        assert compiler is not None, "the native packages were built with a compiler"
        source = Path(__file__).with_name("faulty_read.c")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(source), "-o", str(self._library)],
            check=True,
        )
        self._control.write_bytes(bytes(_BYTES))
        with self._control.open("r+b") as handle:
            self._words = mmap.mmap(handle.fileno(), _BYTES)

    @property
    def environment(self) -> dict[str, str]:
        """For children."""
        own = {"FAULTY_CONTROL": str(self._control), "FAULTY_PATHS": self._paths}
        return {**os.environ, **own, "LD_PRELOAD": str(self._library)}

    def set(self, **settings: int) -> None:
        """Have just these faults from now on; without any the disk is sound."""
        for name in SETTINGS:
            struct.pack_into("=I", self._words, 4 * SETTINGS.index(name), settings.pop(name, 0))
        assert not settings, f"no such faults: {settings}"

    def count(self, name: str) -> int:
        """One of `COUNTS`."""
        at = 4 * (len(SETTINGS) + COUNTS.index(name))
        value: int = struct.unpack_from("=I", self._words, at)[0]
        return value

    @staticmethod
    def inherited() -> DiskFaults:
        """The control in a child that has the `environment`."""
        faults = DiskFaults.__new__(DiskFaults)
        with open(os.environ["FAULTY_CONTROL"], "r+b") as handle:
            faults._words = mmap.mmap(handle.fileno(), _BYTES)
        return faults


def possible() -> bool:
    """Whether children can be made to see such a disk here."""
    return sys.platform == "linux"
