"""Owns the idea of where an expert's bytes lie, whatever the checkpoint's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mach.io.sidecar_layout import RecordSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a batch of experts of one layer lies.

    Attributes:
        fds: open file descriptors; one per expert when its segments follow each other, else one per segment,
            expert by expert.
        offsets: byte offsets, as many as `fds`.
        crcs: CRC-32 of each expert's record, or None where the layout has no checksums.
    """

    fds: Sequence[int]
    offsets: Sequence[int]
    crcs: Sequence[int] | None


class ExpertSource(Protocol):
    """A checkpoint's routed experts, readable one by one."""

    @property
    def schemas(self) -> Mapping[int, RecordSchema]:
        """For each MoE layer, by model index, the tensors of one expert."""

    @property
    def num_experts(self) -> int:
        """Experts per layer."""

    def locate(self, layer: int, experts: Sequence[int]) -> Location:
        """Where these experts' bytes lie."""

    def path_of(self, layer: int, segment: int, expert: int) -> str:
        """The file that holds this segment of an expert, for messages."""

    def changed(self, fds: Sequence[int]) -> str | None:
        """The path of one of `fds` (from `locate`) that was written to since it was opened, or None.

        Asked after reads of what has no checksums.
        """

    def close(self) -> None:
        """Close every file."""
