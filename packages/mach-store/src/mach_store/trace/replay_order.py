"""Owns lookahead's choices while a trace is replayed: the same ones, without looking at every layer for each.

In a replay no expert is kept or announced, and only the layer that is stepped through has pins. So the next
victim of every other layer stays what it was, and only its distance changes as the pass goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mach_store.eviction import Key, LookaheadPolicy
from mach_store.eviction.lookahead import _NEVER

_NONE = float(-np.inf)
"""The distance where a layer has nobody to give."""


class ReplayOrder:
    """What a pool asks of an `EvictionPolicy` in a replay, answered as a `LookaheadPolicy` answers it.

    `candidates` costs some operations per victim, not per layer.
    """

    def __init__(self, policy: LookaheadPolicy) -> None:
        """Args: policy: new, and nobody else's."""
        self._policy = policy
        self._layers, self._place = list(policy._place), policy._place
        count = len(self._layers)
        # Layers from each place to each other, going forwards; a layer comes to itself after a whole round.
        places = np.arange(count)
        self._ahead = (places[None, :] - places[:, None] - 1) % count + 1
        self._now = count - 1
        # For each layer, from its own turn on: the distance to the next use of its first victim.
        self._rounds = np.full(count, _NONE)
        self._stale = set(self._layers)

    def insert(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._policy.insert(key)
        self._used(key[0])

    def touch(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._policy.touch(key)
        self._used(key[0])

    def heard(self, layer: int, counts: Mapping[int, int]) -> None:
        """See `EvictionPolicy`."""
        self._policy.heard(layer, counts)
        self._used(layer)

    def remove(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        layer, expert = key
        pairs = self._policy._sorted.get(layer)
        self._policy.remove(key)
        if pairs is not None:
            # Who stays has the same chances, in the same order; victims stand at its front.
            at = 0
            while pairs[at][1] != expert:
                at += 1
            del pairs[at]
            self._policy._sorted[layer] = pairs
        self._stale.add(layer)

    def candidates(self, count: int, pinned: Collection[Key]) -> list[Key]:
        """See `EvictionPolicy`."""
        policy, place_of, layers = self._policy, self._place, self._layers
        for layer in self._stale:
            self._rounds[place_of[layer]] = self._next(layer, 0, 0, ())[1]
        ahead = self._ahead[self._now]
        distances = self._rounds + ahead
        self._stale = {layer for layer, _ in pinned}  # pins are for this step alone
        following: dict[int, int] = {}  # layer → who is next in its order
        for layer in self._stale:
            place = place_of[layer]
            following[layer], rounds = self._next(layer, 0, 0, pinned)
            distances[place] = rounds + ahead[place]
        chosen: list[Key] = []
        given: dict[int, int] = {}
        while True:
            place = int(distances.argmax())  # of equal ones the first
            if distances[place] == _NONE:
                return policy.candidates(count, pinned)  # every layer is down to its floor
            layer = layers[place]
            at = following.get(layer, 0)
            chosen.append((layer, policy._sorted[layer][at][1]))
            if len(chosen) == count:
                return chosen
            given[layer] = given.get(layer, 0) + 1
            following[layer], rounds = self._next(layer, at + 1, given[layer], pinned)
            distances[place] = rounds + ahead[place]

    def _next(self, layer: int, at: int, given: int, pinned: Collection[Key]) -> tuple[int, float]:
        """A layer's next victim from the place `at` of its order on, when it has given so many.

        Returns:
            His place, and how far from the layer's turn he is used next, in layers; `_NONE`: there is nobody.
        """
        policy = self._policy
        pairs = policy._sorted.get(layer)
        if pairs is None:
            pairs = policy._pairs(layer)
        while pinned and at < len(pairs) and (layer, pairs[at][1]) in pinned:
            at += 1
        if at >= len(pairs) or policy._held[layer] - given <= policy._floors[layer]:
            return at, _NONE
        chance = min(max(pairs[at][0], _NEVER), 1.0)
        return at, len(self._layers) * (1 / chance - 1)

    def _used(self, layer: int) -> None:
        self._now = self._place[layer]
        self._stale.add(layer)
