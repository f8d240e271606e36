"""Owns the streaming bank of a whole model: one byte budget, the fence around each layer, and the totals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mach.io.sidecar_layout import RecordSchema
from mach_store import bank_report, page_return
from mach_store.bank_budget import BankBudget, RecordGroup
from mach_store.bank_form import BankForm, StoredForm
from mach_store.counters import LayerCounters
from mach_store.errors import BankResizeError, DispatchCancelledError
from mach_store.eviction import DEFAULT_POLICY, Key
from mach_store.expert_arrays import ExpertArrays
from mach_store.expert_block import ExpertTensors
from mach_store.expert_map import LayerExperts
from mach_store.expert_pool import ExpertPool
from mach_store.expert_source import ExpertSource
from mach_store.expert_stream import ExpertStream, open_module
from mach_store.layer_bank import LayerExpertBank
from mach_store.load_progress import LoadListener, unheard
from mach_store.pool_shape import PoolShape
from mach_store.read_ahead import ReadAhead, Reading
from mach_store.routed_pass import RoutedPass, RouteLog
from mach_store.scatter_reader import ScatterReader
from mach_store.scratch_arena import ScratchArena

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
        budget_bytes: what the caller allows for experts now.
        declared_bytes: what was allowed when the bank was made; it never grows beyond.
        total_bytes: a bank with every expert; least_bytes: one with a token's experts.
        resize_refusal: why it cannot shrink here, or None.
        given_up: experts that left because the bank shrank.
        layers: model index → that layer's view.
        form: how experts lie in memory.
        residency: `"streaming"` or the form's own name, for reports.
        policy: the name of what chooses who leaves.
        arena: room for experts that are computed with and do not stay.
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
        policy: str = DEFAULT_POLICY,
        reclaim: bool = False,
        no_prefetch: str | None = None,
    ) -> None:
        """Allocate the bank; it takes no more afterwards, but for the scratch arena (`scratch_bytes`).

        Args:
            source: where experts come from.
            reader: how they are read.
            budget_bytes: at most this many bytes are allocated for the bank.
            top_k: experts per token and layer; the budget must hold them for every layer.
            compute: dtype of the activations.
            scratch_experts: experts that the arena for transient prefill holds at once.
            form: how experts lie in memory; None is as they are stored.
            policy: who leaves when the bank is full, one of `mach_store.eviction.POLICIES`.
            reclaim: whether the arena's memory is given back while decoding (`begin_decoding`).
            no_prefetch: why passes in the graph do not read ahead what the next layer will probably need.

        Raises:
            MemoryBudgetError: the budget holds less than one token's experts.
        """
        self.budget_bytes = budget_bytes
        self.source, self.reader, self.top_k = source, reader, top_k
        self.form: BankForm = form or StoredForm(compute, reader)
        self.residency = self.form.residency
        self.cancelled: Callable[[], bool] = _never
        self._held: list[mx.array] = []
        self._routes = RouteLog()
        self._stream: ExpertStream | None = None
        self._in_graph: set[int] = set()
        self._no_prefetch = no_prefetch
        self._read_ahead = ReadAhead()
        groups: dict[RecordSchema, list[int]] = {}
        for layer, schema in source.schemas.items():
            groups.setdefault(schema, []).append(layer)
        # Where the bank is narrow, whatever a token needs of one layer must fit into the arena.
        least_scratch = top_k if any(map(self.form.narrow, groups)) else 1
        arena_experts = min(max(scratch_experts, least_scratch), source.num_experts)
        self.arena = ScratchArena(self.form, arena_experts, reclaim=reclaim)
        self._sizes = BankBudget(
            {
                schema: RecordGroup(self.form.slot_bytes(schema), len(members))
                for schema, members in groups.items()
            },
            experts=source.num_experts,
            top_k=top_k,
        )
        slots = self._sizes.slots(budget_bytes)
        self._pools = []
        self.layers: dict[int, LayerExpertBank] = {}
        for schema, members in groups.items():
            layers = dict.fromkeys(members, source.num_experts)
            pool = ExpertPool(schema, layers, slots[schema], top_k, self.form, policy)
            self._pools.append(pool)
            for layer in members:
                self.layers[layer] = LayerExpertBank(layer, pool, source, reader)
        self.total_bytes, self.least_bytes = self._sizes.total_bytes, self._sizes.least_bytes
        self.declared_bytes = budget_bytes
        self.policy = policy
        self.resize_refusal = page_return.refusal()
        self.given_up = 0
        self._resized = False

    @property
    def nbytes(self) -> int:
        """Bytes of the bank's slots; while it is shrunk, up to a page for each tensor more is still there."""
        return sum(pool.slots * pool.slot_bytes for pool in self._pools)

    @property
    def scratch_bytes(self) -> int:
        """Bytes the scratch arena takes, from its first use on; 0 when the bank is whole and needs none."""
        return self.arena.nbytes(pool.schema for pool in self._pools if pool.narrow or not self.whole)

    @property
    def arena_bytes(self) -> int:
        """Bytes the scratch arena takes where the bank is not whole."""
        return self.arena.nbytes(pool.schema for pool in self._pools)

    @property
    def scratch_experts(self) -> int:
        """Experts of one layer that the scratch arena holds at once."""
        return self.arena.experts

    @property
    def unfilled_bytes(self) -> int:
        """Bytes of empty slots that may not be in memory, because the bank has been smaller; else 0."""
        return sum(pool.free * pool.slot_bytes for pool in self._pools) if self._resized else 0

    @property
    def slots(self) -> int:
        """Experts that the bank holds at once."""
        return sum(pool.slots for pool in self._pools)

    @property
    def shapes(self) -> list[PoolShape]:
        """The sizes of its pools as they are now."""
        return [pool.shape for pool in self._pools]

    @property
    def whole(self) -> bool:
        """Whether every expert of the model has a slot."""
        return all(pool.whole for pool in self._pools)

    @property
    def host_free(self) -> bool:
        """Whether a forward pass never waits for the host: every expert is in memory, to stay."""
        return self.whole and all(bank.device_slots is not None for bank in self.layers.values())

    @property
    def decodes_ahead(self) -> bool:
        """Whether a pass of one token never waits for the host, be its experts in memory or not."""
        return self.host_free or len(self._in_graph) == len(self.layers)

    @property
    def prefetch_slots(self) -> int:
        """Slots kept for experts that are read because they will probably be needed; 0 where none are."""
        return 0 if self._stream is None else self._stream.prefetch_slots

    @property
    def prefetch_refusal(self) -> str | None:
        """Why no expert is read ahead; None where that is done."""
        if self.prefetch_slots:
            return None
        if self._stream is None:
            return "no pass finds its experts by itself: see the layers' dispatch"
        if self._stream.prefetch_refusal is not None:
            return self._stream.prefetch_refusal
        return "every expert has a slot" if self.whole else "the bank has no slots to spare for it"

    @property
    def dispatch_reason(self) -> str | None:
        """Why passes do not find their experts by themselves, of the first layer where so; None if all do."""
        for layer, bank in sorted(self.layers.items()):
            if layer not in self._in_graph:
                return bank.dispatch.get("dispatch_reason", "the reference dispatch asks the host")
        return None

    def in_graph(self, layer: int, product: Any) -> Callable[..., mx.array] | str:
        """`layer`'s dispatch that needs no host (`ExpertStream.layer`), or why there is none.

        Args:
            layer: model layer index.
            product: the native product over the bank's arrays.
        """
        pool = self.layers[layer].pool
        if pool.narrow or not pool.arrays.reads_anywhere:
            return "experts do not lie in memory as they are stored, and MLX converts them"
        if not self.reader.native:
            return f"the Python reader reads: {self.reader.reason}"
        if self._stream is None:
            try:
                native = open_module()
            except ImportError as error:
                return str(error)
            banks = {
                number: bank
                for number, bank in self.layers.items()
                if bank.pool.arrays.reads_anywhere and not bank.pool.narrow
            }
            self._stream = ExpertStream(
                native, banks, self.source, self.reader, self._routes.add, no_prefetch=self._no_prefetch
            )
            self._stream.observed = self._routes.kept
        self._in_graph.add(layer)
        return self._stream.layer(layer, product)

    def begin_pass(self, layer: int) -> None:
        """A layer that is dispatched in the graph is about to become part of one.

        Raises:
            DispatchCancelledError: the caller withdrew the request.
            SidecarCorruptionError, ExpertReadError, StoreError: a pass before this one failed.
        """
        assert self._stream is not None, "a layer got its dispatch from here"
        if self.cancelled():
            raise DispatchCancelledError("the request was cancelled during a forward pass")
        if layer == self._stream.first_layer:
            # A prompt's waves leave pins behind, too, although nothing of theirs is held.
            if self._held or any(pool.pinned for pool in self._pools):
                self.release()
            self._stream.begin()

    def sync(self) -> None:
        """Take in what forward passes without the host did, all but the one built last; waits for nothing.

        Raises:
            SidecarCorruptionError, ExpertReadError, StoreError: one of them failed, and what was computed
                from it is void. The next ones work.
        """
        if self._stream is not None:
            self._stream.sync()

    def quiesce(self) -> None:
        """Wait until no pass without the host is queued or running, and take in what they did.

        Whoever changes slots or tables calls it first. Raises: as `sync`.
        """
        if self._stream is not None:
            self._stream.quiesce()

    def fence(self, indices: mx.array) -> list[int]:
        """Bring routed ids to the host, flat, and release the pins of whatever was held.

        Raises:
            DispatchCancelledError: the caller withdrew the request.
        """
        if self.cancelled():
            self.release()
            raise DispatchCancelledError("the request was cancelled during a forward pass")
        mx.eval(indices, self._held)
        self.quiesce()
        self._unpin()
        return cast(list[int], indices.flatten().tolist())

    def observe_routes(self, on: bool) -> None:
        """Whether routes are kept for `drain_routes`; while they are, every pass brings them to the host.

        Not those that are dispatched in the graph: they log them.
        """
        if on == self._routes.kept:
            return
        self._routes.keep(on)
        if self._stream is not None:
            self._stream.observed = on
        for bank in self.layers.values():
            bank.observed = on

    def routed(self, layer: int, ids: list[int], k: int) -> None:
        """One layer's routes have reached the host. Args: ids: [tokens × k], flat."""
        if self._routes.kept:
            self._routes.add(RoutedPass(layer, np.array(ids, np.uint16).reshape(-1, k)))

    def drain_routes(self) -> list[RoutedPass]:
        """The routes since the last call, in the order of their computation; none unless observed.

        Those of passes without the host are there after `sync` or `quiesce`.
        """
        return self._routes.drain()

    def hold(self, output: mx.array) -> None:
        """Keep the present pins until `output` has been evaluated."""
        self._held.append(output)

    def release(self) -> None:
        """Finish what is held and release its pins; called at the end and on errors."""
        if self._held:
            mx.eval(self._held)
        self._unpin()

    def abandon(self) -> None:
        """Nobody will look at what is queued or held: its request has ended or failed.

        Its pins are released, and passes that were queued ahead end without computing: whatever the request
        had, its KV caches included, is void.
        """
        if self._stream is not None:
            self._stream.abandon()
        self._unpin()

    def _unpin(self) -> None:
        self._held.clear()
        for pool in self._pools:
            pool.pinned.clear()
        if self._stream is not None:
            self._stream.unpin()

    def scratch(self, layer: int) -> ExpertArrays:
        """The arena for `layer`'s kind of expert, made at its first use."""
        return self.arena.arrays(self.source.schemas[layer])

    def begin_decoding(self) -> None:
        """The prompt has been processed, and its results evaluated: see `ScratchArena.end_prompt`.

        Raises:
            BankResizeError: the system refused.
        """
        self.arena.end_prompt(pages=self.resize_refusal is None)

    def begin_read(
        self,
        bank: LayerExpertBank,
        arrays: ExpertArrays,
        experts: Sequence[int],
        slots: Sequence[int],
        *,
        ahead: bool,
    ) -> Reading:
        """Have `experts` of `bank` read into `slots` of `arrays`; finish or drop it before the next call.

        With `ahead` a thread of its own reads, while the caller computes with other slots. Where that cannot
        be (bf16_streaming dequantises with MLX, which belongs to the caller's thread), and without `ahead`,
        the caller itself reads when it finishes.
        """
        read = partial(bank.read, arrays, experts, slots)
        return self._read_ahead.begin(read, ahead=ahead and arrays.reads_anywhere)

    def reading_waits(self, computing_threads: int) -> bool:
        """Whether experts should be read while others are computed: it looks as if reading stood still.

        Copying them out of the page cache is work. Where the products' threads are no more than the reader's
        they take the cores that read, too, and the two together are slower than one after the other.

        Args:
            computing_threads: of the products, each on a core; 0 where they leave cores idle.
        """
        return not 0 < computing_threads <= self.reader.threads or self._read_ahead.from_disk

    def computable(
        self, bank: LayerExpertBank, slot_of: dict[int, int]
    ) -> tuple[ExpertTensors, dict[int, int]]:
        """Arrays to compute with, and where the experts of `slot_of` (just acquired) lie in them.

        The bank's own, or where that is narrow the arena with their widened copies, which last as long as
        the pins do: at most `scratch_experts` of them.
        """
        if not bank.pool.narrow:
            return bank.components, slot_of
        arena = self.scratch(bank.layer)
        arena.copy_from(bank.pool.arrays, list(slot_of.values()))
        return arena.components, {expert: row for row, expert in enumerate(slot_of)}

    def resize(self, budget_bytes: int) -> int:
        """Shrink the bank, giving memory back to the system, or let it grow again; between two passes.

        Experts for which there is no slot any more are given up as the policy chooses; the others stay.
        Answers are the same before, during and after.

        Args:
            budget_bytes: what the bank may take from now on; less than one token's experts is taken as those,
                more than was allocated at the start as that.

        Returns:
            The bank's bytes now.

        Raises:
            BankResizeError: memory cannot be given back on this machine; the bank keeps its size.
        """
        if self.resize_refusal is not None:
            raise BankResizeError(f"the expert cache keeps its size: {self.resize_refusal}")
        self._resized = True
        self.release()
        self.quiesce()
        mx.synchronize()  # a pass queued ahead reads slots that are about to go
        budget_bytes = max(self.least_bytes, min(budget_bytes, self.declared_bytes))
        slots = self._sizes.slots(budget_bytes)
        if self._stream is not None:
            self._stream.end_reserves()
        before = [pool.slots for pool in self._pools]
        for bank in self.layers.values():
            bank.forget_slots()
        try:
            for pool in self._pools:
                self.given_up += len(pool.resize(slots[pool.schema]))
        except BankResizeError as error:
            self.resize_refusal = str(error)
            for pool, slots_before in zip(self._pools, before, strict=True):
                pool.resize(slots_before)
            raise
        finally:
            if self._stream is not None:
                self._stream.republish()
        self.budget_bytes = budget_bytes
        return self.nbytes

    def prewarm(self, listener: LoadListener = unheard) -> None:
        """Read every expert, when the bank is whole: nothing is then read while serving."""
        if not self.whole:
            return
        self.quiesce()
        done = 0
        listener("experts", 0, self.nbytes)
        for bank in self.layers.values():
            for first in range(0, bank.num_experts, PREWARM_BATCH):
                last = min(first + PREWARM_BATCH, bank.num_experts)
                bank.acquire(range(first, last))
                done += (last - first) * bank.pool.slot_bytes
                listener("experts", done, self.nbytes)
            bank.counters.hits = bank.counters.misses = 0
            for expert in range(bank.num_experts):
                bank.uses[expert] = 0
        self._unpin()

    def totals(self) -> LayerCounters:
        """The counters of all layers, added up."""
        total = LayerCounters()
        for bank in self.layers.values():
            total.add(bank.counters)
        return total

    def keep_hot(self, keys: Iterable[Key]) -> None:
        """From now on the experts `keys`, in the bank or not, are given up only when nothing else is left."""
        wanted = frozenset(keys)
        for pool in self._pools:
            pool.keep(frozenset(key for key in wanted if key[0] in pool.occupancy))

    def stats(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports as `streaming_summary`."""
        return bank_report.summary(self, self._pools)

    def expert_map(self) -> dict[int, LayerExperts]:
        """Model index → that layer's experts now; a copy, some 2 µs a layer."""
        return bank_report.expert_map(self, uses_seen=bool(self._in_graph) or not self.host_free)

    def check(self) -> None:
        """Raise AssertionError when the bank's tables contradict each other; for tests."""
        self.quiesce()
        for pool in self._pools:
            pool.check()
        if self._stream is not None:
            self._stream.check()

    def close(self) -> None:
        """Finish what is held, end the thread that reads ahead, and close the files."""
        self.release()
        if self._stream is not None:
            self._stream.abandon()
        self._read_ahead.close()
        self.source.close()


def _never() -> bool:
    return False
