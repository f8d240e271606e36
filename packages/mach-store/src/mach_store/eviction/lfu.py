"""Owns the policy that gives up the expert that was used least often, old uses counting for less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mach_store.eviction.counting_policy import CountingPolicy
from mach_store.eviction.decayed_counts import DecayedCounts, growth
from mach_store.eviction.eviction_policy import Memory, OrderRule


class LfuPolicy(CountingPolicy):
    """Least frequently used over all layers, with ageing and a floor per layer.

    Without ageing an expert that was hot in the last conversation would stay for ever. A use's weight halves
    within `half_life` uses of its layer. Counts outlive the expert's stay in the bank: one that comes back
    has its history, and is not the next to go merely because it is new.
    """

    name = "lfu"

    def __init__(self, floors: Mapping[int, int], half_life: float) -> None:
        """See `LayeredPolicy`. Args: half_life: in uses of a layer; see `policy_table`."""
        super().__init__(floors)
        self._counts = {layer: DecayedCounts(half_life) for layer in self._floors}
        self.rule = OrderRule((Memory(growth(half_life), 1.0),), by_distance=False)

    def _use(self, layer: int, expert: int) -> None:
        self._counts[layer].use(expert)

    def _use_many(self, layer: int, counts: Mapping[int, int]) -> None:
        self._counts[layer].use_many(counts)

    def _memories(self, layer: int) -> Sequence[DecayedCounts]:
        return (self._counts[layer],)

    def _values(self, layer: int, experts: Iterable[int]) -> list[tuple[float, int]]:
        counts = self._counts[layer]
        of, weight = counts.of, 1.0 / counts.worth
        return [(weight * of[expert], expert) for expert in experts]
