"""Owns the sizes of banks that a trace is replayed through: parts of all experts, or slots; per pool."""

from __future__ import annotations

from collections.abc import Sequence

from mach_store.bank_budget import BankBudget, RecordGroup
from mach_store.errors import BankSizeError
from mach_store.trace.trace_header import TraceHeader

DEFAULT_PARTS = (0.05, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)


def all_experts(header: TraceHeader) -> int:
    """Routed experts of all layers."""
    return header.experts * len(header.layers)


def is_whole(header: TraceHeader, slots: Sequence[int]) -> bool:
    """Whether every pool has a slot for each of its experts. Args: slots: per pool."""
    return all(count >= header.experts * header.pools.count(number) for number, count in enumerate(slots))


def bank_bytes(header: TraceHeader, slots: Sequence[int]) -> int:
    """Memory of so many slots. Args: slots: per pool."""
    sizes = dict(zip(header.pools, header.slot_bytes, strict=True))
    return sum(sizes[number] * count for number, count in enumerate(slots))


def pool_slots(header: TraceHeader, size: float | int) -> tuple[int, ...]:
    """Slots of each pool in a bank of a size, shared out as the engine shares a budget in bytes.

    Args:
        header: of the trace.
        size: a float is a part of all experts' memory, above 0 to 1; an integer is slots, of all pools
            together (where pools differ, as many as the memory of so many average experts pays for).

    Raises:
        BankSizeError: the bank would not hold one token's experts in every layer, or be more than whole.
    """
    budget, experts = _budget(header), all_experts(header)
    if isinstance(size, float):
        wanted, told = size * experts, f"{size:g} of the experts"
    else:
        wanted, told = size, f"{size} slots"
    if not wanted <= experts:
        raise BankSizeError(f"a bank of {told} is larger than all {experts} experts: 1.0 is the whole")
    if isinstance(size, float):
        budget_bytes = round(size * budget.total_bytes)
    else:
        budget_bytes = -(-size * budget.total_bytes // experts)
    if budget_bytes < budget.least_bytes:
        least = header.top_k * len(header.layers)
        raise BankSizeError(
            f"a bank of {told} does not hold one token's {least} experts: give at least {least} slots, or "
            f"{budget.least_bytes / budget.total_bytes:.4g} of the experts"
        )
    slots = budget.slots(budget_bytes)
    return tuple(slots[number] for number in range(header.pool_count))


def default_sizes(header: TraceHeader) -> list[tuple[int, ...]]:
    """Slots per pool for a curve: the least bank, parts up to the whole, and the bank of the recorded run."""
    budget = _budget(header)
    least = budget.slots(budget.least_bytes)
    sizes = {tuple(least[number] for number in range(header.pool_count))}
    for part in DEFAULT_PARTS:
        if round(part * budget.total_bytes) >= budget.least_bytes:
            sizes.add(pool_slots(header, part))
    if header.run.bank_slots:
        sizes.add(tuple(header.run.bank_slots))
    return sorted(sizes, key=lambda slots: bank_bytes(header, slots))


def _budget(header: TraceHeader) -> BankBudget[int]:
    groups = {
        number: RecordGroup(size, header.pools.count(number))
        for number, size in zip(header.pools, header.slot_bytes, strict=True)
    }
    return BankBudget(groups, experts=header.experts, top_k=header.top_k)
