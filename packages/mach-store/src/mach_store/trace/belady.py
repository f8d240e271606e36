"""Owns the optimum: how few misses a bank of some size can have, knowing the whole trace.

Belady's MIN gives up what is needed again last (Belady, "A study of replacement algorithms for a
virtual-storage computer", IBM Systems Journal 5 (2), 1966). Here a request is a pass's experts of one layer,
which must be in the bank together: what the pass needs is pinned, and of the rest the farthest next use goes.
That is exact, because it is what MIN does on the sequence that names each expert of a request twice.

A pass that goes past the bank (a long one) may leave there whatever serves best, also nothing. The engine
leaves the bank alone then but for its free slots, so where a trace has such passes this is a bound that no
policy reaches; for decode passes alone it is what the best policy could do.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from mach_store.trace.bank_sizes import is_whole
from mach_store.trace.bank_tally import BankTally
from mach_store.trace.layer_steps import LayerStep
from mach_store.trace.trace_header import TraceHeader


class BeladyReplay:
    """Collects a trace's steps, then finds the least misses of a bank of any size."""

    def __init__(self, header: TraceHeader) -> None:
        """Args: header: of the trace."""
        self._header = header
        self._pools = [_PoolSteps() for _ in range(header.pool_count)]

    def step(self, step: LayerStep) -> None:
        """One layer's part in one pass; 4 bytes for each of its experts, and 16 more."""
        self._pools[self._header.pools[step.at]].add(step, step.at * self._header.experts)

    def least_misses(self, slots: Sequence[int]) -> BankTally:
        """What the optimum makes of the steps; its evictions are not counted. Args: slots: for each pool."""
        tally = BankTally(len(self._header.layers))
        whole = is_whole(self._header, slots)
        for number, steps in enumerate(self._pools):
            layers = self._header.pools.count(number)
            room = min(max(self._header.top_k, slots[number] // layers), self._header.most_at_once(number))
            _optimum(steps, slots[number], room, self._header, tally, whole=whole)
        return tally


class _PoolSteps:
    """The steps of one pool, flat."""

    def __init__(self) -> None:
        self.ends, self.tokens, self.keys = array("Q"), array("I"), array("I")
        self.prefill = bytearray()
        self._next: list[int] | None = None

    def add(self, step: LayerStep, first_key: int) -> None:
        self.keys.extend(first_key + expert for expert in step.experts)
        self.ends.append(len(self.keys))
        self.tokens.append(step.tokens)
        self.prefill.append(step.prefill)
        self._next = None

    def next_uses(self) -> list[int]:
        """For each key the step that needs it next; the number of steps where none does."""
        if self._next is None:
            keys = np.array(self.keys, np.int64)
            ends: NDArray[np.int64] = np.array(self.ends, np.int64)
            step_of = np.searchsorted(ends, np.arange(len(keys)), side="right")
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
            following = np.full(len(keys), len(ends), np.int64)
            following[order[:-1][same]] = step_of[order[1:][same]]
            self._next = following.tolist()
        return self._next


def _optimum(
    steps: _PoolSteps, slots: int, room: int, header: TraceHeader, tally: BankTally, *, whole: bool
) -> None:
    experts, transient = header.experts, header.run.transient_min_tokens
    next_uses, keys, span = steps.next_uses(), steps.keys, header.experts * len(header.layers)
    bank: dict[int, int] = {}  # key → its next use
    heap: list[int] = []  # -next use × span + key, of what is or was in the bank
    begin = 0
    for number, end in enumerate(steps.ends):
        needed = keys[begin:end]
        hits = 0
        for place, key in enumerate(needed, begin):
            hits += key in bank
            following = next_uses[place]
            bank[key] = following
            heappush(heap, key - following * span)
        if len(heap) > 4 * (len(bank) + len(needed)):  # else the past of long traces would stay in it
            heap = [key - following * span for key, following in bank.items()]
            heapify(heap)
        misses = 0 if whole else len(needed) - hits
        at = needed[0] // experts
        tally.count(at, prefill=bool(steps.prefill[number]), hits=len(needed) - misses, misses=misses)
        past = steps.tokens[number] >= transient or len(needed) > room
        pinned = frozenset() if past else frozenset(needed)
        aside = []
        while len(bank) > slots:
            entry = heappop(heap)
            key = entry % span
            if bank.get(key) != (key - entry) // span:
                continue  # it has been used since, or is gone
            if key in pinned:
                aside.append(entry)
            else:
                del bank[key]
        for entry in aside:
            heappush(heap, entry)
        begin = end
