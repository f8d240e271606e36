"""Owns the counting of durations into buckets: one thread writes, any may read, nobody waits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the buckets: from a resident toy model's token to a long prompt's prefill from disk."""


class LatencyHistogram:
    """How many durations fell where. prometheus-client's own takes a lock for each observation."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """Args: bounds: rising upper bounds, in seconds; one more bucket takes what is longer."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; from the one writing thread."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Buckets as (upper bound, durations not longer), the last bound `+Inf`, and the sum in seconds.

        A reader in another thread may see a count whose duration is not yet in the sum.
        """
        total, counts = self._total, accumulate(list(self._counts))
        names = [*map(str, self._bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, counts, strict=True)], total
