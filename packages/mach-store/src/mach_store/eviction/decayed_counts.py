"""Owns how often each expert was used, older uses counting for less; knows nothing of banks.

A use that lies `half_life` uses back, of whatever expert, counts half. Instead of ageing every count at every
use, each new use is worth more than the one before, by the factor 2^(1 / half_life): the counts then stand in
the same proportions, and a use costs one multiplication and one addition. Before numbers grow too large all
are divided by the same power of two, which is exact. Nothing but multiplications and additions follows after
the start, so the same uses give the same counts everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

_LARGEST = 2.0**400


class DecayedCounts:
    """Decayed numbers of uses.

    Attributes:
        worth: what a use is worth now; a count divided by it is in uses.
        of: for each layer, expert → count in that scale; only experts that were ever used.
    """

    def __init__(self, layers: Iterable[int], half_life: float) -> None:
        """Args: half_life: in uses, over all layers."""
        assert half_life > 0, "a count that never ages needs no worth"
        self.worth = 1.0
        self.of: dict[int, dict[int, float]] = {layer: {} for layer in layers}
        self._growth = 2.0 ** (1.0 / half_life)

    def use(self, layer: int, expert: int) -> None:
        """Count one use."""
        self.worth = worth = self.worth * self._growth
        counts = self.of[layer]
        counts[expert] = counts.get(expert, 0.0) + worth
        if worth > _LARGEST:
            self._rescale()

    def _rescale(self) -> None:
        self.worth /= _LARGEST
        for counts in self.of.values():
            for expert in counts:
                counts[expert] /= _LARGEST
