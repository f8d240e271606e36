"""Owns the pinning of hot experts (`LME_DECODE_RESIDENCY=pin`): which ones, and when they are chosen anew.

The hottest experts of each layer are given up only when nothing else is left. They are chosen at the end of a
prompt, after every so many tokens of an answer, and between answers. What hot means is `HotExperts`' affair,
what leaves otherwise the eviction policy's.
"""

from __future__ import annotations

from collections.abc import Sequence

from mach_decode.route_observer import RouteObservers
from mach_store.bank_cache import BankCache
from mach_store.hot_experts import HotExperts
from mach_store.routed_pass import RoutedPass

PINNED_SHARE = 0.25
"""The part of a layer's even share of the slots that is pinned; the others are left to the policy."""
RENEWAL_TOKENS = 256
"""Decoded tokens after which the pins are chosen anew within an answer."""


class HotPins:
    """A `RouteObserver` that pins; it watches only while there is something to evict."""

    def __init__(self, bank: BankCache, observers: RouteObservers) -> None:
        """Nothing is pinned yet. Args: observers: where routes come from."""
        self._bank, self._observers = bank, observers
        self._hot = HotExperts({layer: view.num_experts for layer, view in bank.layers.items()})
        self._first_layer = min(bank.layers)
        self._watching = self._prefilling = False
        self._tokens = 0

    def answer_begins(self) -> None:
        """To be called before observers are told of an answer: a bank that is whole evicts nothing.

        Watching it would only bring its routes to the host.
        """
        if self._bank.whole == self._watching:
            if self._watching:
                self._observers.remove(self)
                self._bank.keep_hot(())
            else:
                self._observers.add(self)
            self._watching = not self._watching

    def answer_began(self, prompt_tokens: int) -> None:
        """See `RouteObserver`."""
        self._tokens = 0

    def routed(self, passes: Sequence[RoutedPass], *, prefill: bool) -> None:
        """See `RouteObserver`."""
        if self._prefilling and not prefill:
            self._renew()
        self._prefilling = prefill
        for layer, ids in passes:
            self._hot.count(layer, ids)
            if not prefill and layer == self._first_layer:
                self._tokens += len(ids)
        if self._tokens >= RENEWAL_TOKENS:
            self._renew()

    def answer_ended(self, *, finished: bool) -> None:
        """See `RouteObserver`."""
        self._prefilling = False
        self._renew()

    def _renew(self) -> None:
        self._tokens = 0
        self._hot.age()
        self._bank.keep_hot(
            (layer, expert)
            for layer, view in self._bank.layers.items()
            for expert in self._hot.hottest(layer, int(PINNED_SHARE * view.pool.share))
        )
