"""Owns the full check of a sidecar: every byte of every record against its checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mach.io.sidecar_layout import LayerFile, read_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """One expert whose bytes are not those that were written, or not there.

    Attributes:
        path: the layer file.
        layer: model layer index.
        expert: expert index within the layer.
        problem: what is wrong, in words.
    """

    path: str
    layer: int
    expert: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: layer {self.layer}, expert {self.expert}: {self.problem}"


def verify_sidecar(directory: str, progress: Callable[[int, int], None] | None = None) -> list[BadRecord]:
    """Read the whole sidecar and return every record that is not what was written.

    Args:
        directory: holds `layout.json`.
        progress: told (layers done, layers).

    Raises:
        SidecarLayoutError: `layout.json` is missing or invalid.
    """
    layout = read_layout(directory)
    bad: list[BadRecord] = []
    for done, layer in enumerate(layout.layers, 1):
        path = os.path.join(directory, layer.file)
        bad.extend(
            BadRecord(path=path, layer=layer.index, expert=expert, problem=problem)
            for expert, problem in _problems(path, layer)
        )
        if progress is not None:
            progress(done, len(layout.layers))
    return bad


def _problems(path: str, layer: LayerFile) -> Iterator[tuple[int, str]]:
    """What is wrong with one layer file: the experts concerned, and how."""
    expert = 0
    try:
        with open(path, "rb") as handle:
            for expert, expected in enumerate(layer.checksums):
                record = memoryview(handle.read(layer.stride))
                if len(record) < layer.stride:
                    yield expert, "the file ends here"
                    return
                if zlib.crc32(record[: layer.schema.nbytes]) != expected:
                    yield expert, "checksum does not match"
            if handle.read(1):
                yield expert, "the file goes on after its last expert"
    except OSError as error:
        yield expert, f"cannot be read ({error.strerror})"
