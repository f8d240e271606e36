"""Owns the policy that gives up the expert whose next use is expected to be farthest away.

Distances are in layers. A forward pass visits the layers in turn, so an expert of layer l can be needed when
the pass comes to l, d layers from now, and then once in every round of all L layers. If it is needed with the
chance p each time, the number of rounds that pass it by is geometrically distributed, 1/p - 1 on average:

    expected distance = d + L × (1/p - 1)

The chance is estimated from the uses so far at two speeds, because routes have a long memory and a short one:
what a text is about, and what the last few tokens were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mach_store.eviction.counting_policy import CountingPolicy
from mach_store.eviction.decayed_counts import DecayedCounts, growth
from mach_store.eviction.eviction_policy import Memory, OrderRule
from mach_store.eviction.layered_policy import Head

_NEVER = 1e-12
"""The least chance: keeps a distance finite."""


class LookaheadPolicy(CountingPolicy):
    """Farthest expected next use first, with a floor per layer."""

    name = "lookahead"

    def __init__(
        self,
        floors: Mapping[int, int],
        *,
        top_k: float,
        half_life: float,
        short_half_life: float,
        short_share: float,
    ) -> None:
        """A policy that has seen nothing yet.

        Args:
            floors: for each layer, the number of experts it keeps while others can give; in the order of
                their indices, which is that of the visits.
            top_k: experts of a layer that one token uses.
            half_life: of the long memory, in uses of a layer.
            short_half_life: of the short one.
            short_share: what the short one says counts for so much of the chance, 0 to 1.
        """
        super().__init__(floors)
        self._long = {layer: DecayedCounts(half_life) for layer in self._floors}
        self._short = {layer: DecayedCounts(short_half_life) for layer in self._floors}
        # An expert used by every token has counts of 1 / (1 - 2^(-top_k / half_life)) uses.
        self._long_weight = (1 - short_share) * (1 - 2.0 ** (-top_k / half_life))
        self._short_weight = short_share * (1 - 2.0 ** (-top_k / short_half_life))
        self._place = {layer: place for place, layer in enumerate(self._floors)}
        self.latest: int = max(self._place)
        long = Memory(growth(half_life), self._long_weight)
        short = Memory(growth(short_half_life), self._short_weight)
        self.rule = OrderRule((long, short), by_distance=True)

    def _use(self, layer: int, expert: int) -> None:
        self._long[layer].use(expert)
        self._short[layer].use(expert)
        self.latest = layer

    def _use_many(self, layer: int, counts: Mapping[int, int]) -> None:
        self._long[layer].use_many(counts)
        self._short[layer].use_many(counts)
        self.latest = layer

    def _memories(self, layer: int) -> Sequence[DecayedCounts]:
        return self._long[layer], self._short[layer]

    def _values(self, layer: int, experts: Iterable[int]) -> list[tuple[float, int]]:
        long, short = self._long[layer], self._short[layer]
        a, b = self._long_weight / long.worth, self._short_weight / short.worth
        long_of, short_of = long.of, short.of
        return [(a * long_of[expert] + b * short_of[expert], expert) for expert in experts]

    def _in_order(self, layer: int) -> Iterator[Head]:
        layers = len(self._place)
        ahead = (self._place[layer] - self._place[self.latest] - 1) % layers + 1
        for chance, expert in self._pairs(layer):
            rounds = 1 / min(max(chance, _NEVER), 1.0) - 1
            yield -(ahead + layers * rounds), layer, expert
