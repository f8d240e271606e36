"""Owns the policy that gives up the least recently used expert."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from mach_store.eviction.eviction_policy import Key, OrderRule, Standing
from mach_store.eviction.layered_policy import Head, LayeredPolicy


class LruPolicy(LayeredPolicy):
    """Least recently used over all layers, with a floor per layer.

    A forward pass visits the layers in a circle, so what was used longest ago is often what is needed
    soonest: docs/eviction-and-prefetch.md shows by how much the other policies are better.
    """

    name = "lru"
    rule = OrderRule((), by_distance=False)

    def __init__(self, floors: Mapping[int, int]) -> None:
        """See `LayeredPolicy`."""
        super().__init__(floors)
        self._orders: dict[int, OrderedDict[int, int]] = {layer: OrderedDict() for layer in self._floors}
        self._clock = 0

    def insert(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._clock += 1
        self._orders[key[0]][key[1]] = self._clock
        self._held[key[0]] += 1

    def touch(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._clock += 1
        order = self._orders[key[0]]
        order[key[1]] = self._clock
        order.move_to_end(key[1])

    def remove(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        del self._orders[key[0]][key[1]]
        self._held[key[0]] -= 1

    def standing(self, layer: int, experts: int) -> Standing:
        """See `EvictionPolicy`."""
        order = self._orders[layer]
        return Standing([float(self._clock)], [float(order.get(expert, 0)) for expert in range(experts)])

    def _in_order(self, layer: int) -> Iterator[Head]:
        for expert, time in self._orders[layer].items():
            yield time, layer, expert
