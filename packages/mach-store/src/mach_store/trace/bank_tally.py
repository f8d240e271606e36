"""Owns the counting of what a bank made of a trace, by layer and by phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

PREFILL, DECODE = 0, 1


class Phase(NamedTuple):
    """Counts of one phase, or of both together. A hit or miss is a distinct expert that a layer needed."""

    hits: int
    misses: int

    @property
    def hit_rate(self) -> float:
        """0 to 1; 0 where nothing was needed."""
        needed = self.hits + self.misses
        return self.hits / needed if needed else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The counts and the rate."""
        return {"hits": self.hits, "misses": self.misses, "hit_rate": self.hit_rate}


class BankTally:
    """Counts that grow while a trace is replayed.

    Attributes:
        hits: for each layer, by position, [in prefill, in decoding].
        misses: likewise.
        evictions: experts that left the bank for another.
        transient_reads: the misses that went past the bank.
    """

    def __init__(self, layers: int) -> None:
        """Zeros."""
        self.hits = [[0, 0] for _ in range(layers)]
        self.misses = [[0, 0] for _ in range(layers)]
        self.evictions = self.transient_reads = 0

    def count(self, at: int, *, prefill: bool, hits: int, misses: int) -> None:
        """Add one step's. Args: at: the layer's position."""
        phase = PREFILL if prefill else DECODE
        self.hits[at][phase] += hits
        self.misses[at][phase] += misses

    def phase(self, phase: int) -> Phase:
        """PREFILL's or DECODE's counts over all layers."""
        return Phase(sum(layer[phase] for layer in self.hits), sum(layer[phase] for layer in self.misses))

    @property
    def total(self) -> Phase:
        """Both phases' counts over all layers."""
        return Phase(sum(map(sum, self.hits)), sum(map(sum, self.misses)))

    def bytes_read(self, record_bytes: Sequence[int], phase: int) -> int:
        """Bytes that a phase's misses read. Args: record_bytes: of one expert, for each layer."""
        return sum(layer[phase] * size for layer, size in zip(self.misses, record_bytes, strict=True))
