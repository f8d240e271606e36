"""Owns how one budget in bytes becomes slots for each kind of record; plain arithmetic, no memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from mach_store.errors import MemoryBudgetError

Kind = TypeVar("Kind", bound=Hashable)
"""What tells kinds of records apart: a record schema, or a pool's number."""


class RecordGroup(NamedTuple):
    """The layers whose experts share one record schema, and so a pool.

    Attributes:
        slot_bytes: memory of one expert.
        layers: how many layers there are.
    """

    slot_bytes: int
    layers: int


class BankBudget(Generic[Kind]):
    """The sizes of a bank: its least, its whole, and what lies between.

    Attributes:
        least_bytes: one token's experts in every layer.
        total_bytes: every expert.
    """

    def __init__(self, groups: Mapping[Kind, RecordGroup], *, experts: int, top_k: int) -> None:
        """Args: experts: routed experts of a layer; top_k: those that a token uses."""
        self._groups, self._experts, self._top_k = dict(groups), experts, top_k
        per_expert = sum(group.slot_bytes * group.layers for group in self._groups.values())
        self.least_bytes, self.total_bytes = per_expert * top_k, per_expert * experts
        self._layers = sum(group.layers for group in self._groups.values())

    def slots(self, budget_bytes: int) -> dict[Kind, int]:
        """Slots for each kind of record that `budget_bytes` pay for.

        Every kind gets one token's experts first; what is left is shared out by the bytes still missing.

        Raises:
            MemoryBudgetError: the budget holds less than one token's experts.
        """
        if budget_bytes < self.least_bytes:
            raise MemoryBudgetError(
                f"the expert cache has {budget_bytes} bytes, but one token needs {self._top_k} experts in "
                f"each of {self._layers} layers, {self.least_bytes} bytes: raise --expert-cache-gb to at "
                f"least {self.least_bytes / 1e9:.3g}",
                needed=self.least_bytes,
                available=budget_bytes,
            )
        spare, missing = budget_bytes - self.least_bytes, self.total_bytes - self.least_bytes
        slots = {}
        for schema, group in self._groups.items():
            needed = self._top_k * group.layers
            more = self._experts * group.layers - needed
            part = spare * more * group.slot_bytes // missing if missing else 0
            slots[schema] = needed + min(more, part // group.slot_bytes)
        return slots
