"""Owns a bank without memory: the engine's own pools and rules, stepped through a trace.

What is decided here again, because the engine decides it amid its graphs: which passes go past the bank
(`gather_switch_glu`), and in which order a pass touches and lets in (`layer_bank`). A test, in
`tests/test_trace_replay.py`, holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from mach.io.sidecar_layout import RecordSchema
from mach_store.bank_form import BankForm
from mach_store.eviction import EvictionPolicy, LookaheadPolicy
from mach_store.expert_arrays import ExpertArrays
from mach_store.expert_pool import ExpertPool
from mach_store.prefill_plan import prefill_plan
from mach_store.trace.bank_tally import BankTally
from mach_store.trace.layer_steps import LayerStep
from mach_store.trace.replay_order import ReplayOrder
from mach_store.trace.trace_header import TraceHeader


class _NoArrays(NamedTuple):
    """As much of `ExpertArrays` as a pool asks for."""

    slots: int
    nbytes: int


class _NoMemory(NamedTuple):
    """A bank form whose arrays hold nothing."""

    is_narrow: bool
    residency: str = "replay"

    def narrow(self, schema: RecordSchema) -> bool:
        """See `BankForm`."""
        return self.is_narrow

    def for_kernels(self, schema: RecordSchema) -> bool:
        """See `BankForm`; nothing is computed."""
        return False

    def bank(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return cast(ExpertArrays, _NoArrays(slots, slots))


class BankReplay:
    """A bank of a given size and policy, and what it made of the steps so far.

    Attributes:
        tally: the counts, as the engine's fence path would have them.
    """

    def __init__(self, header: TraceHeader, slots: Sequence[int], policy: str) -> None:
        """An empty bank; a whole one is full from the start, as the engine fills it before it serves.

        Args:
            header: of the trace.
            slots: for each pool; at least one token's experts in each of its layers.
            policy: one of the engine's.
        """
        self.tally = BankTally(len(header.layers))
        self._arena_rows = header.run.scratch_experts
        self._transient_min_tokens = header.run.transient_min_tokens
        schema = cast(RecordSchema, None)  # a pool only hands it on to its form
        pools = []
        for number, count in enumerate(slots):
            members = [at for at, other in enumerate(header.pools) if other == number]
            layers = dict.fromkeys(members, header.experts)
            form = cast(BankForm, _NoMemory(header.most_at_once(number) < header.experts))
            pool = ExpertPool(schema, layers, count, header.top_k, form, policy)
            if isinstance(pool.policy, LookaheadPolicy):
                pool.policy = cast(EvictionPolicy, ReplayOrder(pool.policy))
            pools.append(pool)
        self._pools = [pools[number] for number in header.pools]
        self._rooms = [
            min(max(header.top_k, pools[number].share), header.most_at_once(number))
            for number in header.pools
        ]
        self._whole = all(pool.whole for pool in pools)

    def step(self, step: LayerStep) -> None:
        """One layer's part in one pass."""
        if self._whole:
            self.tally.count(step.at, prefill=step.prefill, hits=len(step.experts), misses=0)
            return
        pool = self._pools[step.at]
        pool.pinned.clear()  # the fence
        room = self._rooms[step.at]
        if step.tokens >= self._transient_min_tokens or len(step.experts) > room:
            self._transient(pool, step)
        else:
            hits = self._acquire(pool, step.at, step.experts)
            self.tally.count(step.at, prefill=step.prefill, hits=hits, misses=len(step.experts) - hits)

    def _transient(self, pool: ExpertPool, step: LayerStep) -> None:
        pool.heard(step.at, step.routes)
        plan = prefill_plan(pool, step.at, step.hottest_first, self._arena_rows)
        hits = 0
        for batch in (*plan.present, *plan.filling):
            hits += self._acquire(pool, step.at, batch)
        self.tally.transient_reads += len(plan.past)
        self.tally.count(step.at, prefill=step.prefill, hits=hits, misses=len(step.experts) - hits)

    def _acquire(self, pool: ExpertPool, at: int, experts: list[int]) -> int:
        """Pin `experts`, let in those that are missing, and return how many were there."""
        table, touch, pinned = pool.table, pool.policy.touch, pool.pinned
        missing = []
        for expert in experts:
            key = (at, expert)
            if key in table:
                touch(key)
                pinned.add(key)
            else:
                missing.append(key)
        if missing:
            slots, evicted = pool.take(len(missing))
            self.tally.evictions += len(evicted)
            pool.fill(missing, slots)
            pinned.update(missing)
        return len(experts) - len(missing)

    def check(self) -> None:
        """Raise AssertionError when a pool's tables contradict each other; for tests."""
        for pool in self._pools:
            pool.check()
