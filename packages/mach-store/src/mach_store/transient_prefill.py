"""Owns prefill over experts that are not in the bank: expert by expert through a scratch arena.

Each expert that a chunk of tokens needs is read once for the chunk, however many tokens use it. While one
wave of experts is computed the next one is read, into the other half of the arena, unless reading is mere
copying on the cores that compute; the experts that are in the bank are the first wave. The bank keeps its
contents; only its free slots are filled, with the hottest of the experts just seen; its policy hears of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mach_store.bank_cache import BankCache
from mach_store.errors import DispatchCancelledError
from mach_store.expert_block import ExpertBlock
from mach_store.layer_bank import LayerExpertBank
from mach_store.pass_results import PassResults
from mach_store.prefill_plan import prefill_plan
from mach_store.prefill_wave import FillingWave, PrefillWave, PresentWave, TransientWave


def dispatch_transient(
    cache: BankCache, bank: LayerExpertBank, block: ExpertBlock, x: mx.array, ids: NDArray[np.int64]
) -> mx.array:
    """The routed experts' outputs for a chunk of tokens.

    Args:
        cache: the bank of the whole model, just fenced.
        bank: the layer's view of it.
        block: the layer's arithmetic.
        x: [tokens, hidden].
        ids: [tokens, k] expert ids, already on the host.

    Returns:
        [tokens, k, hidden], evaluated.

    Raises:
        DispatchCancelledError: the caller withdrew the request between two waves.
        SidecarCorruptionError, ExpertReadError: a read failed. Nothing is being read any more.
    """
    flat = ids.reshape(-1)
    needed, counts = np.unique(flat, return_counts=True)
    bank.pool.heard(bank.layer, dict(zip(needed.tolist(), counts.tolist(), strict=True)))
    hottest_first: list[int] = needed[np.argsort(-counts, kind="stable")].tolist()
    waves = list(_waves(cache, bank, hottest_first))
    routes_of = _routes_by_wave(waves, flat, bank.num_experts)
    results = PassResults(block, bank.packing, x, ids.shape[1])
    slot_of = np.zeros(bank.num_experts, np.uint32)
    waits = partial(cache.reading_waits, block.threads)
    ahead: PrefillWave | None = None
    try:
        for number, wave in enumerate(waves):
            if cache.cancelled():
                raise DispatchCancelledError("the request was cancelled during prefill")
            if ahead is None:
                wave.begin(ahead=False)
            ahead = None
            components, slots = wave.finish()
            following = waves[number + 1] if number + 1 < len(waves) else None
            # All waves before this one have been computed.
            if following is not None and waits() and following.may_be_read_beside(wave):
                following.begin(ahead=True)
                ahead = following
            slot_of[wave.experts] = slots
            results.compute(components, routes_of[number], slot_of[flat[routes_of[number]]])
    finally:
        if ahead is not None:
            ahead.drop()
    return results.take()


def _waves(cache: BankCache, bank: LayerExpertBank, hottest_first: list[int]) -> Iterator[PrefillWave]:
    """Batches of experts to compute together, in this order."""
    rows = cache.scratch_experts
    plan = prefill_plan(bank.pool, bank.layer, hottest_first, rows)
    for batch in plan.present:
        yield PresentWave(cache, bank, batch)
    for batch in plan.filling:
        yield FillingWave(cache, bank, batch)
    rest, half = plan.past, (rows + 1) // 2
    while rest:
        for first_row, count in ((0, half), (half, rows - half)):
            if batch := rest[:count]:
                yield TransientWave(cache, bank, batch, first_row)
            rest = rest[count:]


def _routes_by_wave(
    waves: list[PrefillWave], flat: NDArray[np.int64], num_experts: int
) -> list[NDArray[np.int64]]:
    """For each wave the indices in `flat` of the routes to its experts, in order."""
    wave_of = np.zeros(num_experts, np.int64)
    for number, wave in enumerate(waves):
        wave_of[wave.experts] = number
    waves_of_routes = wave_of[flat]
    order = np.argsort(waves_of_routes, kind="stable")
    ends = np.cumsum(np.bincount(waves_of_routes, minlength=len(waves)))
    return np.split(order, ends[:-1])
