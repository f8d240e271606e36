"""The reference checkpoint mach-pico: data only, found through the entry-point group `mach.checkpoints`."""

from __future__ import annotations

from pathlib import Path


def checkpoint_directory() -> Path:
    """The directory of the shipped engine-format checkpoint."""
    return Path(__file__).parent / "checkpoint"
