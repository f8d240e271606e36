"""Owns the bill of one answer: what its experts cost, as usage and the log tell it."""

from __future__ import annotations

import msgspec

from mach_decode.request import GenerationFigures


class ExpertIO(msgspec.Struct, frozen=True, kw_only=True):
    """An extension of every API's usage, over prompt and answer; docs/api.md describes the fields.

    Milliseconds are rounded to thousandths. Where every expert is in memory nothing is missed, read or waited
    for; mlx-lm's own experts are not counted, not even as hits.
    """

    hits: int
    misses: int
    prefetched: int
    prefetch_used: int
    bytes_read: int
    wait_ms: float
    compute_ms: float

    @classmethod
    def of(cls, figures: GenerationFigures) -> ExpertIO:
        """The bill of an answer that reached its end."""
        return cls(
            hits=figures.expert_hits,
            misses=figures.expert_misses,
            prefetched=figures.prefetched,
            prefetch_used=figures.prefetch_used,
            bytes_read=figures.bytes_read,
            wait_ms=round(1000 * figures.wait_seconds, 3),
            compute_ms=round(1000 * figures.compute_seconds, 3),
        )
