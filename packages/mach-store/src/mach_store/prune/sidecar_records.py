"""Owns the reading of an engine checkpoint's experts as records, so that it can be pruned again."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence

from mach.io.inspection import CheckpointInspection
from mach.io.sidecar_layout import check_files, read_layout
from mach.preflight.sidecar_probe import match_config
from mach_store.errors import SidecarCorruptionError
from mach_store.sidecar.byte_ranges import ByteRanges, read_ahead
from mach_store.sidecar.record import Record


class SidecarRecords:
    """Records out of an expert sidecar, bytes unchanged, each checked against its checksum."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Read layout.json and compare it with the files and with config.json.

        Raises:
            SidecarLayoutError: they contradict each other.
        """
        assert inspection.sidecar_directory is not None
        self._directory = inspection.sidecar_directory
        layout = read_layout(self._directory)
        check_files(layout, self._directory)
        match_config(layout, inspection, self._directory)
        self._layers = {layer.index: layer for layer in layout.layers}
        self.schemas = {layer.index: layer.schema for layer in layout.layers}
        self.num_experts = inspection.shape.num_experts

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`.

        Raises:
            SidecarCorruptionError: a record is not what was written.
        """
        file = self._layers[layer]
        path = os.path.join(self._directory, file.file)
        with ByteRanges() as files:

            def read(expert: int) -> Record:
                record = memoryview(files.read(path, expert * file.stride, file.schema.nbytes))
                if zlib.crc32(record) != file.checksums[expert]:
                    raise SidecarCorruptionError(
                        f"{path}: layer {layer}, expert {expert}: checksum does not match: make the "
                        "checkpoint again from its original",
                        path=path,
                        layer=layer,
                        expert=expert,
                    )
                return [record[s.offset : s.offset + s.nbytes] for s in file.schema.segments]

            yield from read_ahead(read, range(self.num_experts) if experts is None else experts)
