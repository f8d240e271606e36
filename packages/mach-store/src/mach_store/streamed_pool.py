"""Owns one pool's side of the in-graph dispatch: keeps the native table, order and reserve equal to Python's.

Knows neither passes nor files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mach_store.eviction import Key
from mach_store.expert_pool import ExpertPool
from mach_store.layer_bank import LayerExpertBank

NOTHING = -1
"""The key of a slot that holds nothing."""
RESERVE_PART = 16
"""At most one slot in so many of a pool is kept for experts read on a guess."""


class StreamedPool:
    """One pool's side of it; keeps the native table and order equal to the Python ones."""

    def __init__(self, native: Any, pool: ExpertPool) -> None:
        self._native, self.pool = native, pool
        rule = pool.policy.rule
        self.number: int = native.add_pool(
            *pool.arrays.segments, memories=rule.memories, by_distance=rule.by_distance
        )
        self.keys: list[Key] = []
        self.keys_of: dict[int, list[Key]] = {}
        self._code_of: dict[Key, int] = {}
        self._recounted: set[int] = set()  # layers whose counts the native side does not know
        pool.mirror = self

    def add_layer(self, bank: LayerExpertBank, first: int) -> None:
        """The next layer of the pool. Args: first: what the native side calls its first expert."""
        assert first == len(self.keys), "keys are numbered in order"
        keys = [(bank.layer, expert) for expert in range(bank.num_experts)]
        self.keys_of[bank.layer] = keys
        self._code_of.update((key, first + expert) for expert, key in enumerate(keys))
        self.keys += keys

    def emptied(self, slots: Sequence[int]) -> None:
        """See `SlotMirror`."""
        self._native.set(self.number, slots, [NOTHING] * len(slots))

    def freed(self, slots: Sequence[int]) -> None:
        """See `SlotMirror`."""
        self._native.offer(self.number, slots)

    def filled(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """See `SlotMirror`."""
        self._native.set(self.number, slots, [self._code_of[key] for key in keys])
        self._recounted.update(layer for layer, _ in keys)

    def pinned(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """See `SlotMirror`."""
        self._native.pin(self.number, slots)
        self._recounted.update(layer for layer, _ in keys)

    def counted(self, layer: int) -> None:
        """See `SlotMirror`."""
        self._recounted.add(layer)

    def kept(self, keys: Collection[Key]) -> None:
        """See `SlotMirror`."""
        self._native.keep(self.number, [self._code_of[key] for key in keys])

    def reserve(self) -> None:
        """Keep slots for guesses, if there are some to spare; the reserve before has ended.

        Half of what a token uses of one layer: guesses are for one layer at a time, and every slot less
        in the bank costs hits.
        """
        shape = self.pool.shape
        spare = 0 if self.pool.whole else (shape.slots - shape.least) // 4
        slots = self.pool.reserve(min(max(2, shape.top_k // 2), shape.slots // RESERVE_PART, spare))
        self._native.reserve(self.number, slots)

    def end_reserve(self) -> None:
        """The slots that were kept for guesses are free again."""
        self._native.reserve(self.number, [])
        self.pool.end_reserve()

    def publish(self) -> None:
        """Tell the native side of everything."""
        pool, table = self.pool, self.pool.table
        floors = pool.shape.floors()
        self._native.floors(self.number, [floors[layer] for layer in self.keys_of])
        self.emptied(range(pool.arrays.slots))
        self.filled(list(table), list(table.values()))
        self.freed(pool.free_slots)
        self.kept(pool.policy.kept)
        self.recount()
        self.tell()

    def recount(self) -> None:
        """The native counts are not to be relied on."""
        self._recounted.update(self.keys_of)

    def tell(self) -> None:
        """Tell the native side of counts that it does not know."""
        if not self._recounted:
            return
        policy, places = self.pool.policy, {layer: place for place, layer in enumerate(self.keys_of)}
        layers = [
            (places[layer], *policy.standing(layer, len(self.keys_of[layer]))) for layer in self._recounted
        ]
        latest = None if policy.latest is None else places[policy.latest]
        self._native.recall(self.number, layers, latest)
        self._recounted.clear()

    def check(self) -> None:
        """Raise AssertionError when native and Python sides contradict each other; nothing is queued."""
        held = {
            slot: self.keys[code] for slot, code in enumerate(self._native.keys(self.number)) if code >= 0
        }
        pool = self.pool
        assert held == {slot: key for key, slot in pool.table.items()}, "native and Python tables agree"
        order = [self.keys[code] for code in self._native.next(self.number, len(held))]
        assert order == pool.policy.candidates(len(held), pool.pinned), "and on who leaves next"
