"""Owns the sizes of one pool of a bank, real or simulated: layers, slots, floors, and whose policy it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mach_store.eviction import EvictionPolicy, make_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """One pool.

    Attributes:
        layers: model layer index → number of experts.
        slots: experts that it holds.
        slot_bytes: memory of one.
        top_k: experts of one token in one layer: no pool holds less than these for all its layers.
        policy: the name of its eviction policy.
    """

    layers: Mapping[int, int]
    slots: int
    slot_bytes: int
    top_k: int
    policy: str

    @property
    def most(self) -> int:
        """Slots for every expert."""
        return sum(self.layers.values())

    @property
    def least(self) -> int:
        """Slots for one token's experts."""
        return self.top_k * len(self.layers)

    @property
    def share(self) -> int:
        """Slots of a layer if all had as many."""
        return self.slots // len(self.layers)

    @property
    def floor(self) -> int:
        """Experts that a layer keeps while others can give: half of its share, and one token's at least."""
        return max(self.top_k, self.share // 2)

    def floors(self, rate: float = 1.0) -> dict[int, int]:
        """The floor of each layer. Args: rate: of the experts that are counted."""
        return dict.fromkeys(self.layers, round(rate * self.floor))

    def new_policy(self, rate: float = 1.0) -> EvictionPolicy:
        """A policy with these floors. Args: rate: of the experts that it will hear of."""
        experts = self.most / len(self.layers)
        return make_policy(self.policy, self.floors(rate), experts=rate * experts, top_k=rate * self.top_k)
