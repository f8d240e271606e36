"""Owns prefill over experts that are not in the bank: expert by expert through a scratch arena.

Each expert that a chunk of tokens needs is read once for the chunk, however many tokens use it. The bank
keeps its contents; only its free slots are filled, with the hottest of the experts just seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mach_store.bank_cache import BankCache
from mach_store.errors import DispatchCancelledError
from mach_store.expert_block import ExpertBlock
from mach_store.layer_bank import LayerExpertBank


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
    """
    k = ids.shape[1]
    flat = ids.reshape(-1)
    needed, counts = np.unique(flat, return_counts=True)
    hottest_first: list[int] = needed[np.argsort(-counts, kind="stable")].tolist()
    outputs, order = [], []
    slot_of = np.zeros(bank.num_experts, np.uint32)
    for wave, in_bank in _waves(cache, bank, hottest_first):
        if cache.cancelled():
            raise DispatchCancelledError("the request was cancelled during prefill")
        if in_bank:
            components, where = cache.computable(bank, bank.acquire(wave))
            for expert, slot in where.items():
                slot_of[expert] = slot
        else:
            arena = cache.scratch(bank.layer)
            bank.read_scratch(arena, wave)
            components = arena.components
            slot_of[wave] = np.arange(len(wave), dtype=np.uint32)
        routes = np.flatnonzero(np.isin(flat, wave))
        routes = routes[np.argsort(slot_of[flat[routes]], kind="stable")]
        rows = x[mx.array((routes // k).astype(np.uint32))]
        slots = mx.array(slot_of[flat[routes]])
        y = block.in_slot_order(components, bank.packing, rows, slots, flat.size)
        # The next wave overwrites the arena: this one must have been computed by then.
        mx.eval(y)
        outputs.append(y)
        order.append(routes)
    inverse = np.argsort(np.concatenate(order), kind="stable").astype(np.uint32)
    y = mx.concatenate(outputs)[mx.array(inverse)].reshape(*ids.shape, -1)
    mx.eval(y)
    return y


def _waves(
    cache: BankCache, bank: LayerExpertBank, hottest_first: list[int]
) -> Iterator[tuple[list[int], bool]]:
    """Batches of experts to compute together, and whether a batch goes through the bank."""
    pool = bank.pool
    present = set(bank.resident(hottest_first))
    missing = [expert for expert in hottest_first if expert not in present]
    room = max(0, min(pool.free, pool.share - pool.occupancy[bank.layer]))
    through_bank = sorted(present.union(missing[:room]))
    most = cache.scratch_experts if cache.form.narrow else max(1, len(through_bank))
    for first in range(0, len(through_bank), most):
        yield through_bank[first : first + most], True
    rest = missing[room:]
    for first in range(0, len(rest), cache.scratch_experts):
        yield sorted(rest[first : first + cache.scratch_experts]), False
