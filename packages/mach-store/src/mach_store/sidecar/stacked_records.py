"""Owns records out of MLX checkpoints with experts on axis 0, bytes unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mach.io.inspection import CheckpointInspection
from mach_store.sidecar.byte_ranges import ByteRanges, read_ahead
from mach_store.sidecar.record import Record
from mach_store.stacked_source import stacked_schemas


class StackedRecords:
    """Each expert is a slice of every stacked tensor."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Read nothing yet."""
        self.schemas, self.num_experts = stacked_schemas(inspection)
        self._inspection = inspection

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`."""
        schema = self.schemas[layer]
        table = self._inspection.stacked[layer]
        entries = [table[segment.projection][segment.component] for segment in schema.segments]
        with ByteRanges() as files:

            def read(expert: int) -> Record:
                return [
                    files.read(entry.file, entry.start + expert * segment.nbytes, segment.nbytes)
                    for entry, segment in zip(entries, schema.segments, strict=True)
                ]

            yield from read_ahead(read, range(self.num_experts) if experts is None else experts)
