"""Owns the policy that gives up the expert whose next use is expected to be farthest away.

Distances are in layers. A forward pass visits the layers in turn, so an expert of layer l can be needed when
the pass comes to l, d layers from now, and then once in every round of all L layers. If it is needed with the
chance p each time, the number of rounds that pass it by is geometrically distributed, 1/p - 1 on average:

    expected distance = d + L × (1/p - 1)

The chance is estimated from the uses so far at two speeds, because routes have a long memory and a short one:
what a text is about, and what the last few tokens were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from mach_store.eviction.counting_policy import CountingPolicy
from mach_store.eviction.decayed_counts import DecayedCounts
from mach_store.eviction.eviction_policy import Key
from mach_store.eviction.layered_policy import Head

_NEVER = 1e-12
"""The least chance: keeps a distance finite."""


class LookaheadPolicy(CountingPolicy):
    """Farthest expected next use first, with a floor per layer; announced experts go last."""

    name = "lookahead"

    def __init__(
        self,
        floors: Mapping[int, int],
        *,
        uses_per_token: float,
        half_life: float,
        short_half_life: float,
        short_share: float,
    ) -> None:
        """A policy that has seen nothing yet.

        Args:
            floors: for each layer, the number of experts it keeps while others can give; in the order of
                their indices, which is that of the visits.
            uses_per_token: experts that one token uses in all layers.
            half_life: of the long memory, in uses over all layers.
            short_half_life: of the short one.
            short_share: what the short one says counts for so much of the chance, 0 to 1.
        """
        super().__init__(floors)
        self._long = DecayedCounts(self._floors, half_life)
        self._short = DecayedCounts(self._floors, short_half_life)
        # An expert used by every token has counts of 1 / (1 - 2^(-uses_per_token / half_life)) uses.
        self._long_weight = (1 - short_share) * (1 - 2.0 ** (-uses_per_token / half_life))
        self._short_weight = short_share * (1 - 2.0 ** (-uses_per_token / short_half_life))
        self._place = {layer: place for place, layer in enumerate(self._floors)}
        self._now = len(self._place) - 1
        self._worths = dict.fromkeys(self._floors, (1.0, 1.0))
        self._announced: dict[int, frozenset[int]] = {}

    def announce(self, layer: int, experts: Collection[int]) -> None:
        """See `EvictionPolicy`; it holds until the layer's turn comes."""
        self._announced[layer] = frozenset(experts)

    def _use(self, layer: int, expert: int) -> None:
        long, short = self._long, self._short
        long.use(layer, expert)
        short.use(layer, expert)
        # A layer's chances stand still until its next turn, so they are taken as of its last use.
        self._worths[layer] = (long.worth, short.worth)
        self._now = self._place[layer]
        if self._announced:
            self._announced.pop(layer, None)

    def _values(self, layer: int, experts: Iterable[int]) -> list[tuple[float, int]]:
        long, short = self._long.of[layer], self._short.of[layer]
        long_worth, short_worth = self._worths[layer]
        a, b = self._long_weight / long_worth, self._short_weight / short_worth
        return [(a * long[expert] + b * short[expert], expert) for expert in experts]

    def _in_order(self, layer: int) -> Iterator[Head]:
        layers = len(self._place)
        ahead = (self._place[layer] - self._now - 1) % layers + 1
        for chance, expert in self._pairs(layer):
            rounds = 1 / min(max(chance, _NEVER), 1.0) - 1
            yield -(ahead + layers * rounds), layer, expert

    def _spared(self, key: Key) -> bool:
        announced = self._announced.get(key[0])
        return key in self.kept or (announced is not None and key[1] in announced)
