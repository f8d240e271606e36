"""Owns one layer's view of the bank: looking experts up, reading the missing ones, counting both."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import mlx.core as mx

from mach_store.counters import LayerCounters
from mach_store.expert_arrays import ExpertArrays
from mach_store.expert_block import ExpertTensors
from mach_store.expert_kernel import Packing
from mach_store.expert_pool import ExpertPool
from mach_store.expert_source import ExpertSource
from mach_store.scatter_reader import ScatterReader


class LayerExpertBank:
    """The experts of one layer that are in memory.

    Attributes:
        layer: model layer index.
        num_experts: experts of the layer, in memory or not.
        components: the pool's arrays; slots index their first extent.
        packing: how each projection's weights are packed.
        for_kernels: whether the arrays suit native kernels alone.
        counters: what happened so far.
        uses: for each expert, the passes that needed it and in which somebody saw the routes: the host, or
            the dispatch in the graph.
        dispatch: for reports: which dispatch the layer has, and why not the one in the graph; empty before
            one is made.
        observed: whether somebody wants to see every route (`BankCache.observe_routes`).
    """

    def __init__(self, layer: int, pool: ExpertPool, source: ExpertSource, reader: ScatterReader) -> None:
        """A view of `pool` for `layer`."""
        self.layer = layer
        self.num_experts = source.num_experts
        self.components: ExpertTensors = pool.arrays.components
        self.packing: Packing = pool.arrays.packing
        self.for_kernels = pool.for_kernels
        self.counters = LayerCounters()
        self.uses: array[int] | memoryview[int] = array("Q", bytes(8 * self.num_experts))
        self.pool = pool
        self.dispatch: dict[str, str] = {}
        self.observed = False
        self._source, self._reader = source, reader
        self._device_slots: mx.array | None = None

    @property
    def device_slots(self) -> mx.array | None:
        """Expert → slot as an array [num_experts], with which a graph finds its slots without the host.

        None unless every expert is here to stay, and none where the bank is narrow (the host then widens what
        a pass needs) or while routes are observed.
        """
        if self.observed:
            return None
        if self._device_slots is None and self.pool.whole and not self.pool.narrow:
            if self.pool.occupancy[self.layer] == self.num_experts:
                table = self.pool.table
                slots = [table[self.layer, expert] for expert in range(self.num_experts)]
                self._device_slots = mx.array(slots, mx.uint32)
                mx.eval(self._device_slots)
        return self._device_slots

    @property
    def resident_to_stay(self) -> bool:
        """Whether every expert is in memory, and no other can push it out."""
        return self.pool.whole and self.pool.occupancy[self.layer] == self.num_experts

    def forget_slots(self) -> None:
        """The pool was resized: experts may lie in other slots."""
        self._device_slots = None

    def unknown_expert(self, distinct: Sequence[int]) -> str:
        """What to say of a router that chose experts which do not exist, among `distinct`."""
        return f"layer {self.layer}: the router chose an expert outside 0…{self.num_experts - 1}: {distinct}"

    def resident(self, experts: Sequence[int]) -> list[int]:
        """Those of `experts` that are in the bank."""
        table, layer = self.pool.table, self.layer
        return [expert for expert in experts if (layer, expert) in table]

    def acquire(self, experts: Sequence[int]) -> dict[int, int]:
        """Pin `experts` (distinct), read the missing ones in one batch, and return expert → slot.

        The pins hold until the bank's next fence.

        Raises:
            SidecarCorruptionError, ExpertReadError: a read failed; the bank is as before, less the evicted.
        """
        pool, layer = self.pool, self.layer
        table, touch, uses = pool.table, pool.policy.touch, self.uses
        missing, present = [], []
        for expert in experts:
            key = (layer, expert)
            uses[expert] += 1
            if key in table:
                touch(key)
                present.append(key)
            else:
                missing.append(expert)
        pool.pin(present)
        self.counters.hits += len(present)
        if missing:
            self._read(missing)
        return {expert: table[layer, expert] for expert in experts}

    def _read(self, experts: list[int]) -> None:
        pool = self.pool
        slots = self.reserve(len(experts))
        try:
            self._reader.read(pool.arrays.plan, self._source, self.layer, experts, slots, self.counters)
        except BaseException:
            pool.give_back(slots)
            raise
        self._keep(experts, slots)

    def reserve(self, count: int) -> list[int]:
        """Slots of the pool to read into; the caller hands them back through `keep` or `pool.give_back`."""
        slots, evicted = self.pool.take(count)
        self.counters.evictions += len(evicted)
        return slots

    def keep(self, experts: Sequence[int], slots: list[int]) -> None:
        """`experts`, which this pass needs, have been read into the reserved `slots`: pinned from now on."""
        self._keep(experts, slots)
        for expert in experts:
            self.uses[expert] += 1

    def _keep(self, experts: Sequence[int], slots: list[int]) -> None:
        keys = [(self.layer, expert) for expert in experts]
        self.pool.fill(keys, slots)
        self.pool.pin(keys)
        self.counters.misses += len(experts)

    def read(
        self, arrays: ExpertArrays, experts: Sequence[int], slots: Sequence[int], counters: LayerCounters
    ) -> None:
        """Read `experts` into `slots` of `arrays`; from any thread, if `arrays.reads_anywhere`.

        Raises:
            SidecarCorruptionError, ExpertReadError: a read failed.
        """
        self._reader.read(arrays.plan, self._source, self.layer, experts, slots, counters)

    def read_scratch(self, arrays: ExpertArrays, experts: list[int]) -> None:
        """Read `experts` into the first slots of `arrays`, leaving the bank alone.

        Raises:
            SidecarCorruptionError, ExpertReadError: a read failed.
        """
        self.read(arrays, experts, range(len(experts)), self.counters)
        self.count_transient(experts)

    def count_transient(self, experts: Sequence[int]) -> None:
        """`experts` have been read past the bank, for one pass."""
        self.counters.misses += len(experts)
        self.counters.transient_reads += len(experts)
        for expert in experts:
            self.uses[expert] += 1
