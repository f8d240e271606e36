"""Owns what policies have in common: floors per layer, kept experts, one order out of the layers' orders.

A layer whose routing is flat brings in many experts per token; under one global order it could push out the
hot experts of every other layer. So a layer that holds no more than its floor gives up nothing as long as
another layer holds more than its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from heapq import heapify, heappop, heapreplace

from mach_store.eviction.eviction_policy import Key

Head = tuple[float, int, int]  # (rank, layer, expert)


class LayeredPolicy:
    """A policy whose order within a layer a subclass knows; see `EvictionPolicy`.

    Attributes:
        kept: see `EvictionPolicy`.
        latest: likewise; None where the order does not depend on it.
    """

    latest: int | None = None

    def __init__(self, floors: Mapping[int, int]) -> None:
        """Args: floors: for each layer, the number of experts it keeps while others can give."""
        self.kept: Collection[Key] = frozenset()
        self._floors = dict(sorted(floors.items()))
        self._held = dict.fromkeys(self._floors, 0)

    def set_floors(self, floors: Mapping[int, int]) -> None:
        """See `EvictionPolicy`."""
        self._floors = dict(sorted(floors.items()))

    def _in_order(self, layer: int) -> Iterator[Head]:
        """The layer's experts in the bank, first to go first; the lowest rank of all layers goes first."""
        raise NotImplementedError

    def heard(self, layer: int, counts: Mapping[int, int]) -> None:
        """See `EvictionPolicy`; a policy that does not count has no use for it."""

    def victim(self, pinned: Container[Key]) -> Key | None:
        """See `EvictionPolicy`."""
        first = self.candidates(1, pinned)
        return first[0] if first else None

    def candidates(self, count: int, pinned: Container[Key]) -> list[Key]:
        """See `EvictionPolicy`; count × log(layers) steps, and one for each layer."""
        chosen: dict[Key, None] = {}
        self._choose(chosen, count, pinned, floors=self._floors, spare=True)
        if len(chosen) < count:
            nothing = dict.fromkeys(self._floors, 0)
            self._choose(chosen, count, pinned, floors=nothing, spare=True)
            if len(chosen) < count:
                self._choose(chosen, count, pinned, floors=nothing, spare=False)
        return list(chosen)

    def _choose(
        self,
        chosen: dict[Key, None],
        count: int,
        pinned: Container[Key],
        *,
        floors: Mapping[int, int],
        spare: bool,
    ) -> None:
        """Add to `chosen` what may go while each layer keeps its floor."""
        before = Counter(layer for layer, _ in chosen)
        left = {layer: held - before[layer] - floors[layer] for layer, held in self._held.items()}
        heads: list[tuple[Head, Iterator[Head]]] = []
        for layer, room in left.items():
            if room > 0:
                heads_of_layer = self._free_to_go(layer, chosen, pinned, spare=spare)
                head = next(heads_of_layer, None)
                if head is not None:
                    heads.append((head, heads_of_layer))
        heapify(heads)
        while heads and len(chosen) < count:
            (_, layer, expert), rest = heads[0]
            chosen[layer, expert] = None
            left[layer] -= 1
            head = next(rest, None) if left[layer] > 0 else None
            if head is None:
                heappop(heads)
            else:
                heapreplace(heads, (head, rest))

    def _free_to_go(
        self, layer: int, chosen: Container[Key], pinned: Container[Key], *, spare: bool
    ) -> Iterator[Head]:
        kept = self.kept
        for head in self._in_order(layer):
            key = head[1:]
            if key not in pinned and key not in chosen and not (spare and key in kept):
                yield head
