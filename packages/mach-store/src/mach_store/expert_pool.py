"""Owns the slots of experts that share one record schema: which expert lies where, and who must go."""

from __future__ import annotations

from collections.abc import Mapping

from mach.io.sidecar_layout import RecordSchema
from mach_store.bank_form import BankForm
from mach_store.eviction import EvictionPolicy, Key, LruPolicy
from mach_store.pool_shape import PoolShape


class ExpertPool:
    """A fixed number of slots shared by every layer whose experts have the same tensors.

    Attributes:
        schema: the experts as stored.
        shape: its sizes.
        arrays: the memory.
        narrow: whether it must be widened before it is computed with.
        table: (layer, expert) → slot, for experts that are readable.
        present: for each layer a byte per expert, 1 where it is in `table`: cheap to copy for reports.
        pinned: experts whose slots an unevaluated graph may refer to; they are never evicted.
        whole: whether every expert of every layer has a slot, so that nothing is ever evicted.
    """

    def __init__(
        self,
        schema: RecordSchema,
        layers: Mapping[int, int],
        slots: int,
        top_k: int,
        form: BankForm,
    ) -> None:
        """Allocate `slots` slots for `layers` (model index → number of experts)."""
        self.schema, self.slots = schema, slots
        self.shape = PoolShape(
            layers=dict(layers),
            slots=slots,
            slot_bytes=form.slot_bytes(schema),
            top_k=top_k,
            policy=LruPolicy,
        )
        self.share = self.shape.share
        self.whole = slots >= self.shape.most
        self.narrow = form.narrow
        self.arrays = form.bank(schema, slots)
        self.table: dict[Key, int] = {}
        self.present = {layer: bytearray(experts) for layer, experts in layers.items()}
        self.pinned: set[Key] = set()
        self.occupancy = dict.fromkeys(layers, 0)
        self.policy: EvictionPolicy = self.shape.new_policy()
        self._free = list(range(slots - 1, -1, -1))

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def take(self, count: int) -> tuple[list[int], list[Key]]:
        """`count` slots to read into, and the experts that were evicted for them.

        The caller hands every slot back through `fill` or `give_back`.
        """
        slots, evicted = [], []
        for _ in range(count):
            if not self._free:
                victim = self.policy.victim(self.pinned)
                assert victim is not None, "a fence never needs more experts than the pool has slots"
                self.policy.remove(victim)
                self.occupancy[victim[0]] -= 1
                self.present[victim[0]][victim[1]] = 0
                self._free.append(self.table.pop(victim))
                evicted.append(victim)
            slots.append(self._free.pop())
        return slots, evicted

    def fill(self, keys: list[Key], slots: list[int]) -> None:
        """The experts `keys` are now readable in `slots`."""
        for key, slot in zip(keys, slots, strict=True):
            self.table[key] = slot
            self.occupancy[key[0]] += 1
            self.present[key[0]][key[1]] = 1
            self.policy.insert(key)

    def give_back(self, slots: list[int]) -> None:
        """`slots` were taken, but the read failed: they hold nothing."""
        self._free.extend(slots)

    def check(self) -> None:
        """Raise AssertionError when the tables contradict each other."""
        used = list(self.table.values())
        assert sorted(used + self._free) == list(range(self.slots)), "every slot is free or used, once"
        for layer, count in self.occupancy.items():
            assert count == sum(key[0] == layer for key in self.table), f"occupancy of layer {layer}"
            here = {expert for expert, there in enumerate(self.present[layer]) if there}
            assert here == {key[1] for key in self.table if key[0] == layer}, f"present of layer {layer}"
        assert self.pinned <= set(self.table), "pinned experts are in the bank"
