"""Owns the streaming bank of a whole model: one byte budget, the fence around each layer, and the totals."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mach.io.sidecar_layout import RecordSchema
from mach_store.bank_form import BankForm, StoredForm
from mach_store.counters import LayerCounters
from mach_store.errors import DispatchCancelledError, MemoryBudgetError
from mach_store.expert_arrays import ExpertArrays
from mach_store.expert_block import ExpertTensors
from mach_store.expert_map import LayerExperts
from mach_store.expert_pool import ExpertPool
from mach_store.expert_source import ExpertSource
from mach_store.layer_bank import LayerExpertBank
from mach_store.pool_shape import PoolShape
from mach_store.routed_pass import RoutedPass
from mach_store.scatter_reader import ScatterReader

PREWARM_BATCH = 64
"""Experts read at once while prewarming."""


class BankCache:
    """Hot experts of every layer in memory, the rest on disk.

    All calls come from the one thread that owns MLX. A layer's use of the bank is a fence:

        ids = bank.fence(indices)          # routed ids reach the host; the previous layer's pins are released
        slots = layer.acquire(distinct)    # pin, read the misses in one batch
        y = …                              # a graph that refers to the slots
        bank.hold(y)                       # the pins last until the next fence has evaluated y

    so that no slot is ever written while an unevaluated or running graph refers to it.

    Attributes:
        budget_bytes: what the caller allowed for experts.
        layers: model index → that layer's view.
        form: how experts lie in memory.
        residency: `"streaming"` or the form's own name, for reports.
    """

    def __init__(
        self,
        source: ExpertSource,
        reader: ScatterReader,
        *,
        budget_bytes: int,
        top_k: int,
        compute: mx.Dtype,
        scratch_experts: int = 16,
        form: BankForm | None = None,
    ) -> None:
        """Allocate the bank; memory use is final afterwards, but for the scratch arena (`scratch_bytes`).

        Args:
            source: where experts come from.
            reader: how they are read.
            budget_bytes: at most this many bytes are allocated for the bank.
            top_k: experts per token and layer; the budget must hold them for every layer.
            compute: dtype of the activations.
            scratch_experts: experts that the arena for transient prefill holds at once.
            form: how experts lie in memory; None is as they are stored.

        Raises:
            MemoryBudgetError: the budget holds less than one token's experts.
        """
        self.budget_bytes = budget_bytes
        self.source, self.reader, self.top_k = source, reader, top_k
        self.form: BankForm = form or StoredForm(compute, reader)
        self.residency = self.form.residency
        self.cancelled: Callable[[], bool] = _never
        self._held: list[mx.array] = []
        self._routed: list[RoutedPass] | None = None
        self._scratch: dict[RecordSchema, ExpertArrays] = {}
        groups: dict[RecordSchema, list[int]] = {}
        for layer, schema in source.schemas.items():
            groups.setdefault(schema, []).append(layer)
        # Where the bank is narrow, whatever a token needs of one layer must fit into the arena.
        least_scratch = top_k if self.form.narrow else 1
        self.scratch_experts = min(max(scratch_experts, least_scratch), source.num_experts)
        sizes = {schema: self.form.slot_bytes(schema) for schema in groups}
        least = sum(size * top_k * len(groups[schema]) for schema, size in sizes.items())
        if budget_bytes < least:
            raise MemoryBudgetError(
                f"the expert cache has {budget_bytes} bytes, but one token needs {top_k} experts in each of "
                f"{len(source.schemas)} layers, {least} bytes: raise --expert-cache-gb to at least "
                f"{least / 1e9:.3g}",
                needed=least,
                available=budget_bytes,
            )
        self.total_bytes = sum(
            size * source.num_experts * len(groups[schema]) for schema, size in sizes.items()
        )
        self._pools = []
        self.layers: dict[int, LayerExpertBank] = {}
        # Every group first gets one token's experts; what is left is shared out by the bytes still missing.
        spare, missing = budget_bytes - least, self.total_bytes - least
        for schema, members in groups.items():
            needed = top_k * len(members)
            more = source.num_experts * len(members) - needed
            part = spare * more * sizes[schema] // missing if missing else 0
            slots = needed + min(more, part // sizes[schema])
            layers = dict.fromkeys(members, source.num_experts)
            pool = ExpertPool(schema, layers, slots, top_k, self.form)
            self._pools.append(pool)
            for layer in members:
                self.layers[layer] = LayerExpertBank(layer, pool, source, reader)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the bank."""
        return sum(pool.arrays.nbytes for pool in self._pools)

    @property
    def scratch_bytes(self) -> int:
        """Bytes the scratch arena takes, from its first use on; 0 when the bank is whole and needs none."""
        if self.whole and not self.form.narrow:
            return 0
        return sum(self.form.scratch_bytes(pool.schema, self.scratch_experts) for pool in self._pools)

    @property
    def slots(self) -> int:
        """Experts that the bank holds at once."""
        return sum(pool.slots for pool in self._pools)

    @property
    def shapes(self) -> list[PoolShape]:
        """The sizes of its pools as they are now."""
        return [replace(pool.shape, slots=pool.slots) for pool in self._pools]

    @property
    def whole(self) -> bool:
        """Whether every expert of the model has a slot."""
        return all(pool.whole for pool in self._pools)

    @property
    def host_free(self) -> bool:
        """Whether a forward pass never waits for the host: every expert is in memory, to stay."""
        return self.whole and all(bank.device_slots is not None for bank in self.layers.values())

    def fence(self, indices: mx.array) -> list[int]:
        """Bring routed ids to the host, flat, and release the pins of whatever was held.

        Raises:
            DispatchCancelledError: the caller withdrew the request.
        """
        if self.cancelled():
            self.release()
            raise DispatchCancelledError("the request was cancelled during a forward pass")
        mx.eval(indices, self._held)
        self._unpin()
        return cast(list[int], indices.flatten().tolist())

    def observe_routes(self, on: bool) -> None:
        """Whether routes are kept for `drain_routes`; while they are, every pass brings them to the host."""
        self._routed = [] if on else None
        for bank in self.layers.values():
            bank.observed = on

    def routed(self, layer: int, ids: list[int], k: int) -> None:
        """One layer's routes have reached the host. Args: ids: [tokens × k], flat."""
        if self._routed is not None:
            self._routed.append(RoutedPass(layer, np.array(ids, np.uint16).reshape(-1, k)))

    def drain_routes(self) -> list[RoutedPass]:
        """The routes since the last call, in the order of their computation; none unless observed."""
        if not self._routed:
            return []
        passes, self._routed = self._routed, []
        return passes

    def hold(self, output: mx.array) -> None:
        """Keep the present pins until `output` has been evaluated."""
        self._held.append(output)

    def release(self) -> None:
        """Finish what is held and release its pins; called at the end and on errors."""
        if self._held:
            mx.eval(self._held)
        self._unpin()

    def abandon(self) -> None:
        """Release the pins of a graph that will never be evaluated (its request failed)."""
        self._unpin()

    def _unpin(self) -> None:
        self._held.clear()
        for pool in self._pools:
            pool.pinned.clear()

    def scratch(self, layer: int) -> ExpertArrays:
        """The arena for `layer`'s kind of expert, made at its first use."""
        schema = self.source.schemas[layer]
        if schema not in self._scratch:
            self._scratch[schema] = self.form.scratch(schema, self.scratch_experts)
        return self._scratch[schema]

    def computable(
        self, bank: LayerExpertBank, slot_of: dict[int, int]
    ) -> tuple[ExpertTensors, dict[int, int]]:
        """Arrays to compute with, and where the experts of `slot_of` (just acquired) lie in them.

        The bank's own, or where that is narrow the arena with their widened copies, which last as long as
        the pins do: at most `scratch_experts` of them.
        """
        if not self.form.narrow:
            return bank.components, slot_of
        arena = self.scratch(bank.layer)
        arena.copy_from(bank.pool.arrays, list(slot_of.values()))
        return arena.components, {expert: row for row, expert in enumerate(slot_of)}

    def prewarm(self) -> None:
        """Read every expert, when the bank is whole: nothing is then read while serving."""
        if not self.whole:
            return
        for bank in self.layers.values():
            for first in range(0, bank.num_experts, PREWARM_BATCH):
                bank.acquire(range(first, min(first + PREWARM_BATCH, bank.num_experts)))
            bank.counters.hits = bank.counters.misses = 0
            bank.uses = array("Q", bytes(8 * bank.num_experts))
        self._unpin()

    def totals(self) -> LayerCounters:
        """The counters of all layers, added up."""
        total = LayerCounters()
        for bank in self.layers.values():
            total.add(bank.counters)
        return total

    def stats(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports as `streaming_summary`."""
        return {
            "residency": self.residency,
            "policy": self._pools[0].policy.name,
            "budget_bytes": self.budget_bytes,
            "bank_bytes": self.nbytes,
            "bank_slots": self.slots,
            "experts_total": sum(bank.num_experts for bank in self.layers.values()),
            "experts_resident": sum(len(pool.table) for pool in self._pools),
            "scratch_bytes": sum(arena.nbytes for arena in self._scratch.values()),
            "native_reader": self.reader.native,
            **self.totals().as_dict(),
            "layers": {
                str(layer): {
                    "resident": bank.pool.occupancy[layer],
                    **bank.counters.as_dict(),
                }
                for layer, bank in sorted(self.layers.items())
            },
        }

    def expert_map(self) -> dict[int, LayerExperts]:
        """Model index → that layer's experts now; a copy, some 2 µs a layer."""
        blind = self.host_free
        return {
            layer: LayerExperts(bytes(bank.pool.present[layer]), None if blind else bank.uses[:])
            for layer, bank in sorted(self.layers.items())
        }

    def check(self) -> None:
        """Raise AssertionError when the bank's tables contradict each other; for tests."""
        for pool in self._pools:
            pool.check()

    def close(self) -> None:
        """Finish what is held and close the files."""
        self.release()
        self.source.close()


def _never() -> bool:
    return False
