"""Owns the in-graph dispatch: native passes beside the bank's tables, and the way of news between the two.

A native pass (`lme_expert_stream`) looks experts up and reads missing ones by itself, in MLX's thread.
Which experts leave is the policy's choice all the same: the native side knows its rule, and counts the uses
in its passes just as the policy does when `sync` tells it of them, in their order. Uses elsewhere make the
policy's counts others than the native ones; those are then told. Knows no arithmetic and no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import mlx.core as mx
import numpy as np

from liblme_expert_io.errors import ChecksumError, ReadError
from mach_store.errors import StoreError
from mach_store.expert_source import ExpertSource
from mach_store.layer_bank import LayerExpertBank
from mach_store.routed_pass import RoutedPass
from mach_store.scatter_reader import ScatterReader
from mach_store.streamed_pool import NOTHING, StreamedPool

NATIVE_MODULE = "lme_expert_stream"


class ExpertStream:
    """The native passes over one bank.

    Attributes:
        observed: whether somebody is told of routes.
        prefetch_refusal: why no expert is read on a guess; None where that is done.
    """

    def __init__(
        self,
        native: Any,
        banks: Mapping[int, LayerExpertBank],
        source: ExpertSource,
        reader: ScatterReader,
        routed: Callable[[RoutedPass], None],
        *,
        no_prefetch: str | None,
    ) -> None:
        """Make the bank's pools and layers known to the native side.

        Args:
            native: the module `lme_expert_stream`.
            banks: the views of the bank of every layer whose experts lie there as they are stored.
            source: where the experts' bytes lie.
            reader: how they are read.
            routed: is told of every layer's routes while they are observed.
            no_prefetch: why experts that the next layer will probably need are not read ahead; None to do so.
        """
        self._native = native.ExpertStream(threads=reader.threads, direct=reader.direct)
        self._source, self._reader, self._routed = source, reader, routed
        self._banks = [banks[layer] for layer in sorted(banks)]
        self._pools: dict[int, StreamedPool] = {}
        self._pool_of: list[StreamedPool] = []
        for bank in self._banks:
            if id(bank.pool) not in self._pools:
                self._pools[id(bank.pool)] = StreamedPool(self._native, bank.pool)
            pool = self._pools[id(bank.pool)]
            where = source.locate(bank.layer, range(bank.num_experts))
            changed = source.changed(where.fds) if where.crcs is None else None
            if changed is not None:
                raise reader.file_changed(changed, bank.layer, 0)
            number, first = self._native.add_layer(
                pool.number, bank.num_experts, where.fds, where.offsets, where.crcs
            )
            assert number == len(self._pool_of), "layers are numbered in order"
            self._pool_of.append(pool)
            pool.add_layer(bank, first)
            uses = self._native.uses(number)
            uses[:] = memoryview(bank.uses)
            bank.uses = uses
        self.prefetch_refusal = no_prefetch
        if no_prefetch is None:
            try:
                self._native.prefetch()
            except ValueError as error:
                self.prefetch_refusal = str(error)
        self._publish()
        self._waiting: list[Any] = []
        self._mark = 0
        self.observed = False

    def layer(self, layer: int, product: Any) -> Callable[..., mx.array]:
        """(x, ids, scores) → the routed experts' outputs, lazily, as `ExpertBlock` with `product` gives them.

        A call is part of the forward pass that `begin` announced. Scores, [..., experts] float32, foretell
        what the next layer will choose; None where nobody can.

        Args:
            layer: model layer index.
            product: `lme_cpu_kernels.ExpertProduct` over the pool's arrays.
        """
        number = next(n for n, bank in enumerate(self._banks) if bank.layer == layer)
        streamed: Callable[..., mx.array] = self._native.layer(number, product)
        return lambda x, ids, scores=None: streamed(x, ids, self._mark, scores)

    @property
    def prefetch_slots(self) -> int:
        """Slots that are kept for experts read on a guess."""
        return sum(len(pool.pool.reserved) for pool in self._pools.values())

    @property
    def first_layer(self) -> int:
        """Where a forward pass begins."""
        return self._banks[0].layer

    def begin(self) -> None:
        """A forward pass is going to be built; tells the tables of what those before it have done.

        Raises: as `quiesce`.
        """
        self._mark += 1
        self.sync()

    def sync(self) -> None:
        """Tell the tables of the forward passes before the one built last.

        It waits for nothing. Whoever has built a pass ahead sees the counts of those before it.

        Raises: as `quiesce`.
        """
        self._take_in(*self._native.drain(), below=self._mark)

    def quiesce(self) -> None:
        """Wait until no pass is queued, and tell the tables of everything: they may be changed then.

        Raises:
            SidecarCorruptionError, ExpertReadError, StoreError: a pass failed. None is queued any more, the
                next ones work, and the slots of failed reads are empty.
        """
        self._native.wait()
        self._take_in(*self._native.drain())

    def abandon(self) -> None:
        """As `quiesce`, for passes whose results nobody wants: they do nothing, and no failure is told."""
        self._native.skip(True)
        try:
            self._native.wait()
        finally:
            self._native.skip(False)
        self._take_in(*self._native.drain(), told=False)

    def end_reserves(self) -> None:
        """No slot is kept for guesses, until `republish`; nothing is queued."""
        for pool in self._pools.values():
            pool.end_reserve()

    def republish(self) -> None:
        """The tables were changed otherwise than by taking and filling slots; nothing is queued or pinned."""
        self._publish()

    def _publish(self) -> None:
        for pool in self._pools.values():
            if self.prefetch_refusal is None:
                pool.reserve()
            pool.publish()

    def unpin(self) -> None:
        """No slot is pinned any more."""
        self._native.unpin()

    def check(self) -> None:
        """Raise AssertionError when native and Python tables contradict each other; nothing is queued."""
        for pool in self._pools.values():
            pool.check()

    def _take_in(
        self,
        passes: list[Any],
        failure: Mapping[str, Any] | None,
        *,
        below: int | None = None,
        told: bool = True,
    ) -> None:
        """Take in what passes did: those with marks `below`, or all. Is a failure to be `told`?"""
        passes = self._waiting + passes
        end = len(passes)
        if below is not None and failure is None:
            while end and passes[end - 1][1] >= below:
                end -= 1
        self._waiting = passes[end:]
        for record in passes[:end]:
            self._replay(record)
        if failure is not None:
            self._native.wait()
            self._native.forgive()
            # To the native side reads that failed were uses.
            for pool in self._pools.values():
                pool.recount()
        for pool in self._pools.values():
            pool.tell()
        if failure is not None and told:
            raise self._error(failure)

    def _replay(self, record: Any) -> None:
        number, _, hits, arrivals, k, routes, read, read_seconds, wait_seconds, prefetched, used = record
        bank, pool, counters = self._banks[number], self._pool_of[number], self._banks[number].counters
        keys, touch = pool.keys_of[bank.layer], bank.pool.policy.touch
        for expert in hits:
            touch(keys[expert])
        counters.hits += len(hits)
        for expert, slot, taken, evicted, failed in arrivals:
            gone = None if evicted == NOTHING else pool.keys[evicted]
            bank.pool.arrived(None if failed else keys[expert], slot, taken, gone)
            counters.misses += not failed
            counters.evictions += gone is not None
        counters.bytes_read += read
        counters.prefetched += prefetched
        counters.prefetch_used += used
        if arrivals:
            counters.read_seconds += read_seconds
            counters.wait_seconds += wait_seconds
        if self.observed:
            ids = np.frombuffer(routes, np.uint32).reshape(-1, k).astype(np.uint16)
            self._routed(RoutedPass(bank.layer, ids))

    def _error(self, failure: Mapping[str, Any]) -> StoreError:
        bank, kind = self._banks[failure["layer"]], failure["kind"]
        if kind == "route":
            return StoreError(bank.unknown_expert(failure["routes"]))
        if kind == "slots":
            return StoreError(f"layer {bank.layer}: every slot of the expert bank is pinned: report this")
        if kind == "memory":
            return StoreError(f"layer {bank.layer}: there was no memory for a pass: lower --expert-cache-gb")
        expert = failure["expert"]
        if kind == "changed":
            path = self._source.path_of(bank.layer, failure["segment"], expert)
            return self._reader.file_changed(path, bank.layer, expert)
        if kind == "checksum":
            cause = ChecksumError(0, failure["expected"], failure["actual"])
            return self._reader.corruption(self._source, bank.layer, expert, cause)
        fields = (failure[name] for name in ("segment", "errno", "offset", "wanted", "got"))
        return self._reader.read_failure(self._source, bank.layer, expert, ReadError(0, *fields))


def open_module() -> Any:
    """The native module. Raises: ImportError, if it is not installed or was built against another MLX."""
    return import_module(NATIVE_MODULE)
