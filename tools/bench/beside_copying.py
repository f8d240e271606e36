"""Owns the timing of a child that writes files, beside `cp` of its source until the copy is on the disk."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import page_cache

PEAK = """
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
"""
"""Source of `peak()`: the most memory that the process has had, in bytes."""


def caches() -> tuple[bool, ...]:
    """Whether the source is cold, for each kind of round that this system can make."""
    return (False, True) if hasattr(os, "posix_fadvise") else (False,)


def beside_copying(
    task: str,
    child: str,
    arguments: Sequence[str],
    source: Path,
    output: Path,
    *,
    bytes_of: Callable[[dict[str, Any]], int],
    size_column: str,
    cold: bool,
    rounds: int,
) -> dict[str, str]:
    """Columns of a table: medians of `rounds` copies and runs, which take turns at going first.

    Args:
        task: what the child does; names its column.
        child: source of the child. It reads `source`, writes `output` (its first two arguments) and prints a
            JSON object with `seconds`, its memory `before` and at its `peak`, and the bytes of a `layer`.
        arguments: the child's further arguments.
        source: a directory of files.
        output: deleted after each run.
        bytes_of: a report → the bytes that the child is credited with.
        size_column: the name of their column.
        cold: whether the source is first dropped from the page cache; else it is read into it.
        rounds: pairs of runs.
    """
    size = sum(path.stat().st_size for path in source.iterdir())
    copies, runs, reports = [], [], []
    for number in range(rounds):
        for copying in (True, False) if number % 2 else (False, True):
            (page_cache.drop if cold else page_cache.fill)(source)
            if copying:
                copies.append(size / _copy(source, output))
            else:
                command = [sys.executable, "-c", child, str(source), str(output), *arguments]
                reports.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
                runs.append(bytes_of(reports[-1]) / reports[-1]["seconds"])
            shutil.rmtree(output)
    ratios = [run / copy for run, copy in zip(runs, copies, strict=True)]
    return {
        size_column: f"{bytes_of(reports[0]) / 1e9:.2f}",
        "cache": "cold" if cold else "warm",
        "copy_gb_s": f"{statistics.median(copies) / 1e9:.2f}",
        f"{task}_gb_s": f"{statistics.median(runs) / 1e9:.2f}",
        "ratio": f"{statistics.median(ratios):.2f}",
        "peak_mb": f"{max(r['peak'] for r in reports) / 1e6:.0f}",
        "peak_over_start_mb": f"{max(r['peak'] - r['before'] for r in reports) / 1e6:.0f}",
        "layer_mb": f"{reports[0]['layer'] / 1e6:.0f}",
    }


def _copy(source: Path, output: Path) -> float:
    """Seconds that copying every file takes, until they are on the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(output)], check=True)
    for path in output.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - start
