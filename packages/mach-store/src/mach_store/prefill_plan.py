"""Owns which experts of a long pass lie in the bank, fill its free slots, or go past it; it reads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mach_store.expert_pool import ExpertPool


class PrefillPlan(NamedTuple):
    """A layer's experts in one pass that leaves the bank's contents alone.

    Attributes:
        present: those in the bank, in ascending batches that are computed together.
        filling: those for which it has free slots, in ascending batches that are read together.
        past: the others, hottest first.
    """

    present: list[list[int]]
    filling: list[list[int]]
    past: list[int]


def prefill_plan(pool: ExpertPool, layer: int, hottest_first: list[int], arena_rows: int) -> PrefillPlan:
    """What becomes of the experts that `layer` needs.

    Args:
        pool: the layer's, just fenced.
        layer: as the pool's keys name it.
        hottest_first: distinct experts; the hottest of those that are missing fill the free slots, as far as
            the layer's share goes.
        arena_rows: experts that the scratch arena holds at once.
    """
    table = pool.table
    present = sorted(expert for expert in hottest_first if (layer, expert) in table)
    missing = [expert for expert in hottest_first if (layer, expert) not in table]
    room = max(0, min(pool.free, pool.share - pool.occupancy[layer]))
    # A narrow bank is widened in the arena before it is computed with.
    most = arena_rows if pool.narrow else len(hottest_first)
    half = (arena_rows + 1) // 2
    return PrefillPlan(
        list(_batches(present, most)),
        # In batches too where nothing forces it: what is read while nothing is computed should be little.
        [sorted(batch) for batch in _batches(missing[:room], min(most, half))],
        missing[room:],
    )


def _batches(experts: list[int], most: int) -> Iterator[list[int]]:
    for first in range(0, len(experts), most):
        yield experts[first : first + most]
