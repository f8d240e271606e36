"""Owns what readers of experts have in common: a record, and who gives records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from mach.io.sidecar_layout import RecordSchema

Record = Sequence[bytes | memoryview]
"""One expert's segments' bytes, in its schema's order."""


class ExpertRecords(Protocol):
    """A source of records: what a layer's records look like, and their bytes."""

    @property
    def schemas(self) -> Mapping[int, RecordSchema]:
        """For each MoE layer, by model index, the tensors of one expert."""

    @property
    def num_experts(self) -> int:
        """Experts per layer."""

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """Each expert's segments, in the order of `experts`, the source's numbers; None means all.

        Raises:
            SidecarExportError: a file cannot be read or has changed, or holds what cannot be.
        """
