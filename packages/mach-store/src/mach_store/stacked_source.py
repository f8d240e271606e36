"""Owns streaming out of an axis-0 stacked checkpoint: each expert is a slice of every stacked tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mach.io.inspection import CheckpointInspection
from mach.io.sidecar_layout import COMPONENTS, PROJECTIONS, Quantization, RecordSchema, build_schema
from mach_store.errors import StoreError
from mach_store.expert_source import Location
from mach_store.file_marks import FileMarks

DTYPE_NAMES = {"U8": "uint8", "U32": "uint32", "F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def stacked_schemas(inspection: CheckpointInspection) -> tuple[dict[int, RecordSchema], int]:
    """One expert's tensors for each layer of a stacked checkpoint, and the number of experts.

    Raises:
        StoreError: layers disagree about the number of experts, or a dtype is not supported.
    """
    schemas: dict[int, RecordSchema] = {}
    counts = set()
    for layer, projections in sorted(inspection.stacked.items()):
        tensors = []
        for projection in PROJECTIONS:
            for component in COMPONENTS:
                entry = projections.get(projection, {}).get(component)
                if entry is None:
                    continue
                if entry.dtype not in DTYPE_NAMES:
                    raise StoreError(
                        f"{entry.file}: layer {layer}, {projection}.{component} has dtype {entry.dtype}, "
                        "which is not supported"
                    )
                counts.add(entry.shape[0])
                tensors.append(
                    (f"{projection}.{component}", DTYPE_NAMES[entry.dtype], tuple(entry.shape[1:]))
                )
        schemas[layer] = build_schema(
            tensors, {projection: _quantization(inspection, layer, projection) for projection in PROJECTIONS}
        )
    if len(counts) != 1:
        raise StoreError(
            f"{inspection.directory}: stacked tensors hold different numbers of experts: {sorted(counts)}"
        )
    return schemas, counts.pop()


def _quantization(inspection: CheckpointInspection, layer: int, projection: str) -> Quantization | None:
    scheme = inspection.quantization.scheme_for(inspection.expert_module(layer, projection))
    if scheme is None:
        return None
    return Quantization(mode=scheme.mode, bits=scheme.bits, group_size=scheme.group_size)


class StackedSource:
    """The experts of a stacked checkpoint, sliced out of its safetensors files at their offsets."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Open the files that hold experts.

        Raises:
            StoreError: as `stacked_schemas`, or a file cannot be opened.
        """
        self.schemas, self.num_experts = stacked_schemas(inspection)
        self._fds: dict[str, int] = {}
        self._marks = FileMarks()
        self._places: dict[int, list[tuple[int, int, int]]] = {}
        self._paths: dict[int, list[str]] = {}
        try:
            for layer, schema in self.schemas.items():
                places, paths = [], []
                for segment in schema.segments:
                    entry = inspection.stacked[layer][segment.projection][segment.component]
                    if entry.file not in self._fds:
                        self._fds[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
                        self._marks.remember(self._fds[entry.file], entry.file)
                    places.append((self._fds[entry.file], entry.start, segment.nbytes))
                    paths.append(entry.file)
                self._places[layer], self._paths[layer] = places, paths
        except OSError as error:
            self.close()
            raise StoreError(f"{error.filename}: cannot be opened ({error.strerror})") from error

    def locate(self, layer: int, experts: Sequence[int]) -> Location:
        """See `ExpertSource`; a stacked checkpoint has no checksums."""
        places = self._places[layer]
        return Location(
            fds=[fd for _ in experts for fd, _, _ in places],
            offsets=[start + expert * size for expert in experts for _, start, size in places],
            crcs=None,
        )

    def path_of(self, layer: int, segment: int, expert: int) -> str:
        """See `ExpertSource`."""
        return self._paths[layer][segment]

    def changed(self, fds: Sequence[int]) -> str | None:
        """See `ExpertSource`."""
        return self._marks.changed(fds)

    def close(self) -> None:
        """See `ExpertSource`."""
        while self._fds:
            os.close(self._fds.popitem()[1])
