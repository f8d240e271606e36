"""Owns the full check of a sidecar: every byte of every record against its checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from mach.io.sidecar_layout import check_files, read_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """One expert whose bytes do not match."""

    path: str
    layer: int
    expert: int

    def __str__(self) -> str:
        return f"{self.path}: layer {self.layer}, expert {self.expert}: checksum does not match"


def verify_sidecar(directory: str, progress: Callable[[int, int], None] | None = None) -> list[BadRecord]:
    """Read the whole sidecar and return every record that is not what was written.

    Args:
        directory: holds `layout.json`.
        progress: told (layers done, layers).

    Raises:
        SidecarLayoutError: the layout is invalid, or a file is missing or has the wrong size.
        OSError: a file cannot be read.
    """
    layout = read_layout(directory)
    check_files(layout, directory)
    bad = []
    for done, layer in enumerate(layout.layers, 1):
        path = os.path.join(directory, layer.file)
        with open(path, "rb") as handle:
            for expert, expected in enumerate(layer.checksums):
                record = memoryview(handle.read(layer.stride))
                if zlib.crc32(record[: layer.schema.nbytes]) != expected:
                    bad.append(BadRecord(path=path, layer=layer.index, expert=expert))
        if progress is not None:
            progress(done, len(layout.layers))
    return bad
