"""Owns the experts of each layer in an order that changes only when the layer is used; knows no policy.

A layer's experts are put in order when somebody asks, at most once after each use of the layer: between two
forward passes' uses of a layer its order stands still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mach_store.eviction.decayed_counts import DecayedCounts
from mach_store.eviction.eviction_policy import Key, Standing
from mach_store.eviction.layered_policy import Head, LayeredPolicy


class CountingPolicy(LayeredPolicy):
    """A policy that ranks by what it counted; a subclass counts in `_use` and ranks in `_values`.

    Its `rule` must give the same values, to the bit.
    """

    def __init__(self, floors: Mapping[int, int]) -> None:
        """See `LayeredPolicy`."""
        super().__init__(floors)
        self._present: dict[int, list[int]] = {layer: [] for layer in self._floors}
        self._sorted: dict[int, list[tuple[float, int]]] = {}

    def _use(self, layer: int, expert: int) -> None:
        """Count a use."""
        raise NotImplementedError

    def _use_many(self, layer: int, counts: Mapping[int, int]) -> None:
        """Count uses (expert → how many) in no order."""
        raise NotImplementedError

    def _memories(self, layer: int) -> Sequence[DecayedCounts]:
        """The counts, in the order of the rule's memories."""
        raise NotImplementedError

    def _values(self, layer: int, experts: Iterable[int]) -> list[tuple[float, int]]:
        """(value, expert) for each; the lowest value goes first. The same until the layer's next use."""
        raise NotImplementedError

    def insert(self, key: Key) -> None:
        """See `EvictionPolicy`. An expert that comes back is remembered."""
        layer, expert = key
        self._use(layer, expert)
        self._present[layer].append(expert)
        self._held[layer] += 1
        self._sorted.pop(layer, None)

    def touch(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._use(*key)
        self._sorted.pop(key[0], None)

    def heard(self, layer: int, counts: Mapping[int, int]) -> None:
        """See `EvictionPolicy`."""
        self._use_many(layer, counts)
        self._sorted.pop(layer, None)

    def remove(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._present[key[0]].remove(key[1])
        self._held[key[0]] -= 1
        self._sorted.pop(key[0], None)

    def standing(self, layer: int, experts: int) -> Standing:
        """See `EvictionPolicy`."""
        memories = self._memories(layer)
        counts = [memory.of.get(expert, 0.0) for memory in memories for expert in range(experts)]
        return Standing([memory.worth for memory in memories], counts)

    def _pairs(self, layer: int) -> list[tuple[float, int]]:
        """The layer's experts in the bank with their values, in order."""
        pairs = self._sorted.get(layer)
        if pairs is None:
            pairs = sorted(self._values(layer, self._present[layer]))
            self._sorted[layer] = pairs
            # Most of it is in order the next time.
            self._present[layer] = [expert for _, expert in pairs]
        return pairs

    def _in_order(self, layer: int) -> Iterator[Head]:
        for value, expert in self._pairs(layer):
            yield value, layer, expert
