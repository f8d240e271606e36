"""Owns streaming out of a raw checkpoint of plain floats: each expert is a slice of what the files hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from mach.io.inspection import CheckpointInspection
from mach.io.raw_experts import RawPart, RawWeight, raw_experts
from mach.io.sidecar_layout import COMPONENTS, PROJECTIONS, RecordSchema, build_schema
from mach_store.errors import StoreError
from mach_store.expert_source import Location
from mach_store.file_marks import FileMarks
from mach_store.stacked_source import DTYPE_NAMES


class _Place(NamedTuple):
    """One tensor of an expert's record: where its bytes begin within the stored part."""

    part: RawPart
    offset: int
    nbytes: int


class RawSource:
    """The experts of a raw checkpoint whose `slices_problem` is None."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Open the files that hold experts.

        Raises:
            UnsupportedLayoutError: as `raw_experts`.
            StoreError: a file cannot be opened.
        """
        found = raw_experts(inspection)
        self.num_experts = inspection.shape.num_experts
        self.schemas: dict[int, RecordSchema] = {}
        self._places: dict[int, list[_Place]] = {}
        self._fds: dict[str, int] = {}
        self._marks = FileMarks()
        for layer, weights in found.layers.items():
            self.schemas[layer], self._places[layer] = _record(weights)
        try:
            for places in self._places.values():
                for place in places:
                    for entry in place.part.entries:
                        if entry.file not in self._fds:
                            self._fds[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
                            self._marks.remember(self._fds[entry.file], entry.file)
        except OSError as error:
            self.close()
            raise StoreError(f"{error.filename}: cannot be opened ({error.strerror})") from error

    def locate(self, layer: int, experts: Sequence[int]) -> Location:
        """See `ExpertSource`; a raw checkpoint has no checksums."""
        fds, offsets = [], []
        for expert in experts:
            for place in self._places[layer]:
                file, start = place.part.start(expert)
                fds.append(self._fds[file])
                offsets.append(start + place.offset)
        return Location(fds=fds, offsets=offsets, crcs=None)

    def path_of(self, layer: int, segment: int, expert: int) -> str:
        """See `ExpertSource`."""
        return self._places[layer][segment].part.start(expert)[0]

    def changed(self, fds: Sequence[int]) -> str | None:
        """See `ExpertSource`."""
        return self._marks.changed(fds)

    def close(self) -> None:
        """See `ExpertSource`."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def _record(weights: Sequence[RawWeight]) -> tuple[RecordSchema, list[_Place]]:
    """The tensors of one expert in the record's order, and their places."""
    found: dict[str, tuple[str, tuple[int, ...], _Place]] = {}
    for weight in weights:
        holds = weight.projection.holds
        for component, part in weight.parts.items():
            rows, nbytes = weight.rows // len(holds), part.nbytes // len(holds)
            shape = (rows, weight.columns) if component == "weight" else (rows,)
            for index, projection in enumerate(holds):
                place = _Place(part, index * nbytes, nbytes)
                found[f"{projection}.{component}"] = DTYPE_NAMES[part.dtype], shape, place
    names = [f"{projection}.{component}" for projection in PROJECTIONS for component in COMPONENTS]
    names = [name for name in names if name in found]
    schema = build_schema([(name, *found[name][:2]) for name in names], dict.fromkeys(PROJECTIONS))
    places = [found[name][2] for name in names]
    assert [place.nbytes for place in places] == [segment.nbytes for segment in schema.segments]
    return schema, places
