"""Owns how often each expert of one layer was used, older uses counting for less; knows nothing of banks.

A use that lies `half_life` uses of the layer back counts half. Instead of ageing every count at every use,
each new use is worth more than the one before, by the factor 2^(1 / half_life): the counts then stand in the
same proportions, and a use costs one multiplication and one addition. Before numbers grow too large all are
divided by the same power of two, which is exact.

Time is counted in uses of the layer itself, so that a prompt, which is processed layer by layer, does not age
the first layers' counts by the uses of the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_LARGEST = 2.0**400
_MOST_HALVINGS = 64
"""After so many halvings nothing is left of what was counted before."""


def growth(half_life: float) -> float:
    """How much more a use is worth than the one before. Args: half_life: in uses."""
    return math.exp2(1.0 / half_life)


class DecayedCounts:
    """Decayed numbers of uses.

    Attributes:
        worth: what a use is worth now; a count divided by it is in uses.
        of: expert → count in that scale; only experts that were ever used.
    """

    __slots__ = ("_growth", "_half_life", "of", "worth")

    def __init__(self, half_life: float) -> None:
        """Args: half_life: in uses of the layer."""
        assert half_life > 0, "a count that never ages needs no worth"
        self.worth = 1.0
        self.of: dict[int, float] = {}
        self._half_life = half_life
        self._growth = growth(half_life)

    def use(self, expert: int) -> None:
        """Count one use."""
        self.worth = worth = self.worth * self._growth
        of = self.of
        of[expert] = of.get(expert, 0.0) + worth
        if worth > _LARGEST:
            self._rescale()

    def use_many(self, counts: Mapping[int, int]) -> None:
        """Count uses whose order is not known (expert → how many), as if evenly mixed."""
        uses = sum(counts.values())
        if not uses:
            return
        halvings = min(uses / self._half_life, _MOST_HALVINGS)
        # The sum of what so many uses in a row are worth, spread over them.
        grown, before = 2.0**halvings, self.worth
        each = before * (grown - 1) * self._growth / (self._growth - 1) / uses
        self.worth = before * grown
        for expert, count in counts.items():
            self.of[expert] = self.of.get(expert, 0.0) + count * each
        if self.worth > _LARGEST:
            self._rescale()

    def _rescale(self) -> None:
        self.worth /= _LARGEST
        for expert in self.of:
            self.of[expert] /= _LARGEST
