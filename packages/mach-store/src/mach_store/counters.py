"""Owns what a layer's bank counts; plain integers and seconds, added up by whoever reports them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(slots=True)
class LayerCounters:
    """Counts of one layer since its store was made.

    A hit or miss is one distinct expert needed by one forward pass of the layer. Where every expert is in
    memory the host does not see the routes: a pass then counts a hit per route, at most one per expert.

    Attributes:
        hits: experts found in the bank.
        misses: experts read from disk because they were needed, transient ones included.
        evictions: experts that left the bank for another.
        transient_reads: the misses that went through the scratch arena.
        prefetched: experts whose read was begun because they were expected to be needed, rightly or not.
        prefetch_used: the misses whose read had been begun so; most had ended when they were needed.
        bytes_read: bytes read from disk, those read while the store was filled before serving included.
        read_seconds: wall time spent in reads, likewise, but for those that nobody waited for.
        wait_seconds: wall time in which a forward pass stood still for a read; at most `read_seconds` where
            experts in memory are computed, or the next ones read, in the meantime.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    transient_reads: int = 0
    prefetched: int = 0
    prefetch_used: int = 0
    bytes_read: int = 0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, other: LayerCounters) -> None:
        """Add `other`'s counts to this one's."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def since(self, before: LayerCounters) -> LayerCounters:
        """What was counted after `before`, an earlier state of these counts."""
        return LayerCounters(
            **{field.name: getattr(self, field.name) - getattr(before, field.name) for field in fields(self)}
        )

    def as_dict(self) -> dict[str, float]:
        """The counts and the hit rate (0 to 1; 0 before the first use)."""
        needed = self.hits + self.misses
        return {**asdict(self), "hit_rate": self.hits / needed if needed else 0.0}
