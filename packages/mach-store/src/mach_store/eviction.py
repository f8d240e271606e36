"""Owns the choice of which expert leaves a bank: pure tables, no MLX, replayable on a recorded trace."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping
from typing import Protocol

Key = tuple[int, int]  # (layer, expert)


class EvictionPolicy(Protocol):
    """What a bank asks of a policy; the bank tells it of every insertion, use and removal."""

    name: str

    def insert(self, key: Key) -> None:
        """`key` has just been read into the bank, and is in use."""

    def touch(self, key: Key) -> None:
        """`key`, already in the bank, is in use."""

    def remove(self, key: Key) -> None:
        """`key` has left the bank."""

    def set_floors(self, floors: Mapping[int, int]) -> None:
        """The pool has another size now: `floors` as at the beginning, for the same layers."""

    def victim(self, pinned: Container[Key]) -> Key | None:
        """The expert to give up next, never one of `pinned`; None when every expert is pinned."""


class LruPolicy:
    """Least recently used over all layers, with a floor per layer.

    A layer whose routing is flat inserts many experts per token; under one global order it would push out the
    hot experts of every other layer. So a layer that holds no more than its floor gives up nothing as long as
    another layer holds more than its own.
    """

    name = "lru"

    def __init__(self, floors: Mapping[int, int]) -> None:
        """Args: floors: for each layer, the number of experts it keeps while others can give."""
        self._floors = dict(floors)
        self._orders: dict[int, OrderedDict[int, int]] = {layer: OrderedDict() for layer in floors}
        self._clock = 0

    def insert(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._clock += 1
        self._orders[key[0]][key[1]] = self._clock

    def touch(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        self._clock += 1
        order = self._orders[key[0]]
        order[key[1]] = self._clock
        order.move_to_end(key[1])

    def remove(self, key: Key) -> None:
        """See `EvictionPolicy`."""
        del self._orders[key[0]][key[1]]

    def set_floors(self, floors: Mapping[int, int]) -> None:
        """See `EvictionPolicy`."""
        self._floors = dict(floors)

    def victim(self, pinned: Container[Key]) -> Key | None:
        """See `EvictionPolicy`."""
        return self._oldest(pinned, respect_floors=True) or self._oldest(pinned, respect_floors=False)

    def _oldest(self, pinned: Container[Key], *, respect_floors: bool) -> Key | None:
        best: Key | None = None
        best_time = self._clock + 1
        for layer, order in self._orders.items():
            if respect_floors and len(order) <= self._floors[layer]:
                continue
            for expert, time in order.items():
                if time >= best_time:
                    break
                if (layer, expert) not in pinned:
                    best, best_time = (layer, expert), time
                    break
        return best
