"""Owns the slots of experts that share one record schema: which expert lies where, and who must go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from mach.io.sidecar_layout import RecordSchema
from mach_store.bank_form import BankForm
from mach_store.eviction import DEFAULT_POLICY, EvictionPolicy, Key
from mach_store.pool_shape import PoolShape


class SlotMirror(Protocol):
    """Somebody else's copy of a pool's table, who is told of every change; no pass of his runs meanwhile."""

    def emptied(self, slots: Sequence[int]) -> None:
        """`slots` hold nothing now, and are somebody's who is about to fill them."""

    def freed(self, slots: Sequence[int]) -> None:
        """`slots`, which were somebody's, may be taken again: they hold nothing."""

    def filled(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """The experts `keys` are readable in `slots`, which held nothing."""

    def pinned(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """The experts `keys` are in use, and an unevaluated graph may refer to their `slots`."""

    def counted(self, layer: int) -> None:
        """The policy has heard of uses of `layer`."""

    def kept(self, keys: Collection[Key]) -> None:
        """The experts `keys` alone are given up only when nothing else is left."""


class ExpertPool:
    """Slots shared by every layer whose experts have the same tensors.

    Attributes:
        schema: the experts as stored.
        shape: its sizes now, and what makes its policy.
        arrays: the memory, allocated once; `resize` uses its first slots alone.
        slots: slots in use, at most those of `arrays`; those of the reserve included.
        reserved: slots that the mirror keeps for experts read on a guess; `shape` is without them.
        slot_bytes: memory of one of them.
        share: an even part of the slots for each layer.
        narrow: whether it must be widened before it is computed with.
        for_kernels: whether it suits native kernels alone.
        table: (layer, expert) → slot, for experts that are readable.
        present: for each layer a byte per expert, 1 where it is in `table`: cheap to copy for reports.
        pinned: experts whose slots an unevaluated graph may refer to; they are never evicted.
        whole: whether every expert of every layer has a slot, so that nothing is ever evicted.
        mirror: is told of changes, if there is one.
    """

    def __init__(
        self,
        schema: RecordSchema,
        layers: Mapping[int, int],
        slots: int,
        top_k: int,
        form: BankForm,
        policy: str = DEFAULT_POLICY,
    ) -> None:
        """Allocate `slots` slots for `layers` (model index → number of experts).

        `policy` is one of `mach_store.eviction.POLICIES`.
        """
        self.schema = schema
        self.mirror: SlotMirror | None = None
        self.narrow, self.for_kernels = form.narrow(schema), form.for_kernels(schema)
        self.arrays = form.bank(schema, slots)
        self.slot_bytes = self.arrays.nbytes // slots
        self.table: dict[Key, int] = {}
        self.present = {layer: bytearray(experts) for layer, experts in layers.items()}
        self.pinned: set[Key] = set()
        self.reserved: set[int] = set()
        self.occupancy = dict.fromkeys(layers, 0)
        self.shape = PoolShape(
            layers=dict(layers), slots=slots, slot_bytes=self.slot_bytes, top_k=top_k, policy=policy
        )
        self._use(self.shape)
        self.policy: EvictionPolicy = self.shape.new_policy()
        self._free = list(range(slots - 1, -1, -1))

    def _use(self, shape: PoolShape) -> None:
        self.shape, self.share = shape, shape.share
        self.slots = shape.slots + len(self.reserved)
        self.whole = shape.slots >= shape.most

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    @property
    def free_slots(self) -> Sequence[int]:
        """The slots that hold nothing; `take` gives the last first."""
        return self._free

    def pin(self, keys: Sequence[Key]) -> None:
        """An unevaluated graph may refer to the experts `keys` in their slots."""
        self.pinned.update(keys)
        if self.mirror is not None:
            self.mirror.pinned(keys, [self.table[key] for key in keys])

    def heard(self, layer: int, counts: Mapping[int, int]) -> None:
        """A prompt used `layer`'s experts so often: see `EvictionPolicy`."""
        self.policy.heard(layer, counts)
        if self.mirror is not None:
            self.mirror.counted(layer)

    def keep(self, keys: Collection[Key]) -> None:
        """From now on `keys`, in the pool or not, are given up only when nothing else is left."""
        self.policy.kept = keys
        if self.mirror is not None:
            self.mirror.kept(keys)

    def take(self, count: int) -> tuple[list[int], list[Key]]:
        """`count` slots to read into, and the experts that were evicted for them.

        The caller hands every slot back through `fill` or `give_back`.
        """
        evicted = self._evict(count - len(self._free))
        slots = [self._free.pop() for _ in range(count)]
        if self.mirror is not None:
            self.mirror.emptied(slots)
        return slots, evicted

    def _evict(self, count: int) -> list[Key]:
        """Give up `count` experts, if that is more than none."""
        if count <= 0:
            return []
        victims = self.policy.candidates(count, self.pinned)
        assert len(victims) == count, "a fence never needs more experts than the pool has slots"
        self._free += [self._leave(victim) for victim in victims]
        return victims

    def _leave(self, key: Key) -> int:
        self.policy.remove(key)
        self.occupancy[key[0]] -= 1
        self.present[key[0]][key[1]] = 0
        return self.table.pop(key)

    def reserve(self, count: int) -> list[int]:
        """Set `count` slots aside for the mirror, the last free ones; experts leave if too few are free."""
        assert not self.reserved and not self.pinned, "a reserve is made once, between passes"
        self._evict(count - len(self._free))
        slots, self._free = self._free[:count], self._free[count:]
        self.reserved = set(slots)
        self._use(replace(self.shape, slots=self.slots - count))
        self.policy.set_floors(self.shape.floors())
        return slots

    def end_reserve(self) -> None:
        """The slots set aside are free again, and hold nothing."""
        slots = self.slots
        self._free[:0] = sorted(self.reserved, reverse=True)
        self.reserved = set()
        self._use(replace(self.shape, slots=slots))
        self.policy.set_floors(self.shape.floors())

    def arrived(self, key: Key | None, slot: int, taken: int, evicted: Key | None) -> None:
        """The mirror has done this by itself: `key` is readable in `slot`, for which `evicted` had to leave.

        Args:
            key: None if it could not be read: the slot is empty.
            slot: the same as `taken`; or one of the reserve, to which `taken` belongs in place of it.
            taken: was free, or held `evicted`.
            evicted: None if the slot was free.
        """
        if evicted is None:
            self._free.remove(taken)
        else:
            left = self._leave(evicted)
            assert left == taken, "an expert leaves the slot that it was in"
        if slot != taken:
            self.reserved.remove(slot)
            self.reserved.add(taken)
        if key is None:
            self._free.append(slot)
        else:
            self._enter(key, slot)

    def resize(self, slots: int) -> list[Key]:
        """Use the first `slots` slots alone, and give the others' memory back; or use more of them again.

        Experts in slots that go are moved into lower ones, for which the policy gives experts up. Nothing is
        pinned, and no graph that is not finished refers to the pool.

        Returns:
            The experts that were given up.

        Raises:
            BankResizeError: the system would not take all the memory; the slots are out of use all the same.
        """
        assert not self.pinned and not self.reserved, "a pool is resized between passes, without a reserve"
        assert self.shape.least <= slots <= self.arrays.slots, "one token's experts, and no more"
        before = self.slots
        self._use(replace(self.shape, slots=slots))
        self.policy.set_floors(self.shape.floors())
        given_up = self._evict(len(self.table) - slots)
        if slots > before:
            # At the front: slots that are in memory already are used first.
            self._free[:0] = range(slots - 1, before - 1, -1)
            return given_up
        self._free = sorted((slot for slot in self._free if slot < slots), reverse=True)
        for key, slot in self.table.items():
            if slot >= slots:
                target = self._free.pop()
                self.arrays.move(slot, target)
                self.table[key] = target
        if slots < before:
            self.arrays.release_from(slots)
        return given_up

    def fill(self, keys: list[Key], slots: list[int]) -> None:
        """The experts `keys` are now readable in `slots`."""
        for key, slot in zip(keys, slots, strict=True):
            self._enter(key, slot)
        if self.mirror is not None:
            self.mirror.filled(keys, slots)

    def _enter(self, key: Key, slot: int) -> None:
        self.table[key] = slot
        self.occupancy[key[0]] += 1
        self.present[key[0]][key[1]] = 1
        self.policy.insert(key)

    def give_back(self, slots: list[int]) -> None:
        """`slots` were taken, but the read failed: they hold nothing."""
        self._free.extend(slots)
        if self.mirror is not None:
            self.mirror.freed(slots)

    def check(self) -> None:
        """Raise AssertionError when the tables contradict each other."""
        used = list(self.table.values())
        known = sorted([*used, *self._free, *self.reserved])
        assert known == list(range(self.slots)), "every slot is free, used or reserved, once"
        assert self.slots <= self.arrays.slots, "slots in use are allocated"
        for layer, count in self.occupancy.items():
            assert count == sum(key[0] == layer for key in self.table), f"occupancy of layer {layer}"
            here = {expert for expert, there in enumerate(self.present[layer]) if there}
            assert here == {key[1] for key in self.table if key[0] == layer}, f"present of layer {layer}"
        assert self.pinned <= set(self.table), "pinned experts are in the bank"
