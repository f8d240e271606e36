"""Owns what a streaming bank says of itself to who asks from outside: its summary and its picture.

It reads the bank as it is between two passes and changes nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mach_store.expert_map import LayerExperts
from mach_store.expert_pool import ExpertPool

if TYPE_CHECKING:
    from mach_store.bank_cache import BankCache


def summary(bank: BankCache, pools: Sequence[ExpertPool]) -> dict[str, Any]:
    """What `/v1/cache/stats` reports as `streaming_summary`; mach-server's README explains the fields.

    Args:
        bank: the bank.
        pools: its slots.
    """
    return {
        "residency": bank.residency,
        "policy": bank.policy,
        "hot_experts_pinned": sum(len(pool.policy.kept) for pool in pools),
        "budget_bytes": bank.budget_bytes,
        "declared_budget_bytes": bank.declared_bytes,
        "resizable": bank.resize_refusal is None,
        "resize_refusal": bank.resize_refusal,
        "experts_given_up": bank.given_up,
        "bank_bytes": bank.nbytes,
        "bank_slots": bank.slots,
        "huge_page_bytes": sum(pool.arrays.huge_page_bytes for pool in pools),
        "experts_total": sum(layer.num_experts for layer in bank.layers.values()),
        "experts_resident": sum(len(pool.table) for pool in pools),
        "scratch_bytes": bank.arena.bytes_in_use,
        "scratch_reclaimed_bytes": bank.arena.reclaimed_bytes,
        "native_reader": bank.reader.native,
        "prefetch_slots": bank.prefetch_slots,
        "prefetch_refusal": bank.prefetch_refusal,
        **bank.totals().as_dict(),
        "layers": {
            str(number): {
                "resident": layer.pool.occupancy[number],
                **layer.dispatch,
                **layer.counters.as_dict(),
            }
            for number, layer in sorted(bank.layers.items())
        },
    }


def expert_map(bank: BankCache, *, uses_seen: bool) -> dict[int, LayerExperts]:
    """Model index → that layer's experts now; a copy, some 2 µs a layer.

    Args:
        bank: the bank.
        uses_seen: whether somebody counts which experts passes need.
    """
    return {
        number: LayerExperts(bytes(layer.pool.present[number]), array("Q", layer.uses) if uses_seen else None)
        for number, layer in sorted(bank.layers.items())
    }
