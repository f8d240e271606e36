"""Owns the estimate of how often banks of other sizes would have missed: sampled, in constant memory.

It sees routes and sizes; it measures no time and asks no bank anything.

A part of all (layer, expert) keys is chosen by a hash (spatially hashed sampling: Waldspurger et al.,
"Efficient MRC Construction with SHARDS", FAST '15), and the references to those alone drive a miniature of
each bank, scaled down by the same rate (Waldspurger et al., "Cache Modeling and Optimization using
Miniature Simulations", ATC '17). The miniatures run the engine's own eviction policies, so that the curve
holds for each of them, not only for those of the stack kind.

Two refinements: all keys are known beforehand, so that every layer gives its part of them (stratified
sampling); and misses are divided by the references expected at this rate, not by those seen (SHARDS-adj),
so that it matters less whether chance has chosen a layer's hottest key. With few enough keys all are
watched, and the rates are what real banks would have had. With 1,024 of 6,144 and a bank of a quarter of
them (Zipf traffic of several kinds) they were within 0.03 of that; within 0.04 for half of that bank under
LRU.

What is not modelled: prompts. Their chunks go past a bank that is full (`transient_prefill`) and only renew
the standing of what is in it; on mach-pico that moved no rate by more than 0.002 (LRU). Nor are failed
reads, experts read ahead, and experts that are kept against the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mach_store.eviction import Key
from mach_store.miniature_bank import MiniatureBank
from mach_store.pool_shape import PoolShape
from mach_store.routed_pass import RoutedPass

RELATIVE_SIZES = (0.5, 1.0, 1.5, 2.0)
"""Sizes that are simulated, in parts of the present bank."""

MOST_KEYS = 1024
"""Keys watched at most, but for the one that every layer gives."""

HALF_LIFE_TOKENS = 2048.0
"""Tokens after which a reference counts half: the curve is that of late traffic."""

Limit = Literal["all_experts", "one_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What one size of bank would do.

    Attributes:
        relative: the size asked for, in parts of the present bank.
        bank_slots: experts that such a bank holds.
        bank_bytes: its memory.
        limit: set where the size was cut: to `all_experts`, or up to `one_token`'s experts in every layer.
        hit_rate: predicted, 0 to 1; None before there is anything to go by.
    """

    relative: float
    bank_slots: int
    bank_bytes: int
    limit: Limit | None
    hit_rate: float | None


class MissRatioCurve:
    """Predicted hit rates of banks of several sizes, for decoding.

    A hit is counted as `LayerCounters` counts it: per distinct expert, layer and pass. A key's first
    reference counts neither as hit nor as miss, because banks of every size miss it, once.

    Attributes:
        keys: (layer, expert) pairs that there are.
        sampled_keys: those that are watched.
        references: experts that decode passes needed, watched or not.
        tokens: decode passes.
    """

    def __init__(
        self,
        pools: Sequence[PoolShape],
        *,
        sizes: Sequence[float] = RELATIVE_SIZES,
        most_keys: int = MOST_KEYS,
        half_life_tokens: float = HALF_LIFE_TOKENS,
    ) -> None:
        """Begin with empty miniatures.

        Args:
            pools: the present bank.
            sizes: in parts of the present bank.
            most_keys: watched at most; every layer gives one at least.
            half_life_tokens: decoded tokens after which a reference counts half.
        """
        self.keys = sum(pool.most for pool in pools)
        self.references = self.tokens = 0
        self._sizes, self._half_life = tuple(sizes), half_life_tokens
        self._pools = [_SampledPool(pool, sizes, min(1.0, most_keys / self.keys)) for pool in pools]
        self._pool_of = {layer: pool for pool in self._pools for layer in pool.key_of}
        self._first_layer = min(self._pool_of)
        self.sampled_keys = sum(pool.sampled_keys for pool in self._pools)

    @property
    def sample_rate(self) -> float:
        """Part of the keys that is watched."""
        return self.sampled_keys / self.keys

    def feed(self, passes: Iterable[RoutedPass], *, counts: bool = True) -> None:
        """Take in the routes of decode passes, in the order of their computation.

        Args:
            passes: routes of every layer.
            counts: False only lets the miniatures settle, after a time in which they heard of nothing.
        """
        tokens = 0
        for layer, ids in passes:
            experts = sorted(ids[0].tolist()) if len(ids) == 1 else np.unique(ids).tolist()
            used = self._pool_of[layer].use(layer, experts)
            if counts:
                tokens += layer == self._first_layer
                self.references += len(experts)
                self._pool_of[layer].count(len(experts), used)
        if tokens:
            self.tokens += tokens
            remains = 0.5 ** (tokens / self._half_life)
            for pool in self._pools:
                pool.age(remains)

    def points(self) -> list[CurvePoint]:
        """The curve, a point for each size."""
        counted = sum(pool.counted for pool in self._pools)
        made = []
        for index, relative in enumerate(self._sizes):
            parts = [(pool, pool.sizes[index]) for pool in self._pools]
            missed = sum(size.missed / pool.rate for pool, size in parts)
            limits = {size.limit for _, size in parts}
            made.append(
                CurvePoint(
                    relative=relative,
                    bank_slots=sum(size.slots for _, size in parts),
                    bank_bytes=sum(size.slots * pool.slot_bytes for pool, size in parts),
                    limit=limits.pop() if len(limits) == 1 else None,
                    hit_rate=min(1.0, max(0.0, 1 - missed / counted)) if counted > 0 else None,
                )
            )
        return made

    def check(self) -> None:
        """Raise AssertionError when a miniature contradicts itself; for tests."""
        for pool in self._pools:
            for size in pool.sizes:
                if size.bank is not None:
                    size.bank.check()


@dataclass(slots=True, kw_only=True)
class _Size:
    """One size of one pool.

    Attributes:
        slots: of the real bank.
        limit: see `CurvePoint`.
        bank: the miniature; None where every expert has a slot and nothing is missed twice.
        missed: watched references that missed, without first ones; older ones count less.
    """

    slots: int
    limit: Limit | None
    bank: MiniatureBank | None
    missed: float = 0.0


class _SampledPool:
    """The miniatures of one pool.

    Attributes:
        key_of: layer → the experts watched, each with its key.
        sampled_keys: how many these are.
        rate: the part of the pool's keys that they are.
        counted: references to the pool, first ones (as estimated) left out; older ones count less.
        sizes: a miniature for each size.
    """

    def __init__(self, shape: PoolShape, sizes: Sequence[float], rate: float) -> None:
        self.slot_bytes = shape.slot_bytes
        self.key_of = {layer: _sample(layer, experts, rate) for layer, experts in shape.layers.items()}
        self.sampled_keys = sum(map(len, self.key_of.values()))
        self.rate = self.sampled_keys / shape.most
        self.counted = 0.0
        self._seen: set[Key] = set()
        self.sizes = [self._size(shape, relative) for relative in sizes]

    def _size(self, shape: PoolShape, relative: float) -> _Size:
        wanted = round(relative * shape.slots)
        slots = min(max(wanted, shape.least), shape.most)
        limit: Limit | None = None
        if slots != wanted:
            limit = "all_experts" if slots < wanted else "one_token"
        bank = None
        if slots < shape.most:
            policy = replace(shape, slots=slots).new_policy(self.rate)
            bank = MiniatureBank(max(1, round(self.rate * slots)), policy)
        return _Size(slots=slots, limit=limit, bank=bank)

    def use(self, layer: int, experts: Sequence[int]) -> tuple[int, list[int]]:
        """A decode pass needs `experts` of `layer`: first references, and what each size missed besides."""
        key_of, seen = self.key_of[layer], self._seen
        keys = [key_of[expert] for expert in experts if expert in key_of]
        first = 0
        for key in keys:
            if key not in seen:
                seen.add(key)
                first += 1
        return first, [size.bank.use(keys) - first if size.bank else 0 for size in self.sizes]

    def count(self, needed: int, used: tuple[int, list[int]]) -> None:
        """Count what a pass needed and `use` returned."""
        first, missed = used
        self.counted += needed - first / self.rate
        for size, misses in zip(self.sizes, missed, strict=True):
            size.missed += misses

    def age(self, remains: float) -> None:
        """What was counted so far counts `remains` times as much."""
        self.counted *= remains
        for size in self.sizes:
            size.missed *= remains


def _sample(layer: int, experts: int, rate: float) -> dict[int, Key]:
    """Expert → key for the keys of `layer` with the lowest hashes: `rate` of all, and one at least."""
    hashes = _mixed(np.arange(experts, dtype=np.uint64) + (np.uint64(layer) << np.uint64(32)))
    chosen = np.argsort(hashes, kind="stable")[: max(1, int(rate * experts))]
    return {expert: (layer, expert) for expert in chosen.tolist()}


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA '14), modulo 2⁶⁴."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
