"""Owns whether the files of a directory are in the system's page cache."""

from __future__ import annotations

import os
from pathlib import Path


def fill(directory: Path) -> None:
    """Have them all there."""
    for path in _files(directory):
        with path.open("rb", buffering=0) as handle:
            while handle.read(16 << 20):
                pass


def drop(directory: Path) -> None:
    """Have none of them there (Linux)."""
    for path in _files(directory):
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
