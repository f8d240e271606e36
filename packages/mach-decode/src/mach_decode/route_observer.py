"""Owns the way of routes from the store to whoever wants to see them: recorders, curves, reports.

It knows answers and their steps, and not what an observer does with what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mach_decode.loaded_model import ExpertStore
from mach_store.routed_pass import RoutedPass


class RouteObserver(Protocol):
    """Sees which experts each token was routed to; called between two steps, in the thread that owns MLX.

    What an observer raises ends the answer as a failure of the engine would: one that can fail (a full disk)
    deals with that itself.
    """

    def answer_began(self, prompt_tokens: int) -> None:
        """An answer to a prompt of so many tokens begins."""

    def routed(self, passes: Sequence[RoutedPass], *, prefill: bool) -> None:
        """Layers were computed, in this order; a pass over the model begins where the layer does not rise.

        The last layer is missing where nobody needed its result: in short passes over a prompt.

        Args:
            passes: each layer's part, at least one; a pass over the model may come in two calls.
            prefill: whether they processed the prompt; all but its last token, which belongs to decoding.
        """

    def answer_ended(self, *, finished: bool) -> None:
        """The answer is over. Args: finished: False if it was cancelled or failed, perhaps within a pass."""


class RouteObservers:
    """Everybody who sees the routes of one engine. Without an observer nothing is kept, and it costs nothing.

    Change it between answers, or from within an observer's own call.
    """

    def __init__(self, store: ExpertStore) -> None:
        """Args: store: whose routes."""
        self._store = store
        self._observers: tuple[RouteObserver, ...] = ()

    @property
    def observed(self) -> bool:
        """Whether anybody sees them."""
        return bool(self._observers)

    def add(self, observer: RouteObserver) -> None:
        """Let `observer` see every route from now on.

        Raises:
            RoutesUnseenError: the experts are the model's own; nobody sees their routes.
        """
        self._store.observe_routes(True)
        self._observers += (observer,)

    def remove(self, observer: RouteObserver) -> None:
        """`observer` has seen enough."""
        assert observer in self._observers, "an observer is removed once"
        self._observers = tuple(other for other in self._observers if other is not observer)
        if not self._observers:
            self._store.observe_routes(False)

    def answer_began(self, prompt_tokens: int) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.answer_began(prompt_tokens)

    def step_ended(self, *, prefill: bool) -> None:
        """Tell everybody of the routes that have reached the host. Args: prefill: see `RouteObserver`."""
        if not self._observers:
            return
        passes = self._store.drain_routes()
        if passes:
            for observer in self._observers:
                observer.routed(passes, prefill=prefill)

    def answer_ended(self, *, finished: bool, prefill: bool) -> None:
        """Tell everybody, of routes that are left first."""
        self.step_ended(prefill=prefill)
        for observer in self._observers:
            observer.answer_ended(finished=finished)
