"""Owns the store of a model whose experts, if it has any, are its own: nothing is held, read or counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mach_store.counters import LayerCounters
from mach_store.errors import RoutesUnseenError
from mach_store.expert_map import LayerExperts
from mach_store.routed_pass import RoutedPass


class UnswappedExperts:
    """Takes a store's place where nothing was swapped, so that nobody has to ask whether there is one.

    Attributes:
        cancelled: unused, for symmetry with `BankCache`: nothing here waits for the host.
        residency: `"unswapped"`, for reports.
        host_free, decodes_ahead: a forward pass never waits for the host.
        nbytes: of experts in a store: none.
    """

    residency = "unswapped"
    host_free = True
    decodes_ahead = True
    nbytes = 0

    def __init__(self) -> None:
        """An empty store."""
        self.cancelled: Callable[[], bool] = _never

    def totals(self) -> LayerCounters:
        """Zeros: what mlx-lm's own experts do is not seen."""
        return LayerCounters()

    def stats(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports as `streaming_summary`; no expert is in a store."""
        return {
            "residency": self.residency,
            "bank_bytes": 0,
            "bank_slots": 0,
            "experts_total": 0,
            "experts_resident": 0,
            **self.totals().as_dict(),
        }

    def expert_map(self) -> dict[int, LayerExperts]:
        """No layer has experts in this store."""
        return {}

    def observe_routes(self, on: bool) -> None:
        """See `BankCache.observe_routes`.

        Raises:
            RoutesUnseenError: always, if `on`: the experts are mlx-lm's own.
        """
        if on:
            raise RoutesUnseenError(
                "with --backend openai the experts are mlx-lm's own, and their routes are not seen: use "
                "--streaming or --no-streaming"
            )

    def drain_routes(self) -> list[RoutedPass]:
        """None is seen."""
        return []

    def sync(self) -> None:
        """Nothing runs behind the host's back: for symmetry with `BankCache`."""

    def quiesce(self) -> None:
        """As `sync`."""

    def begin_decoding(self) -> None:
        """Nothing is given back: for symmetry with `BankCache`."""

    def abandon(self) -> None:
        """Nothing is pinned: for symmetry with `BankCache`."""

    def close(self) -> None:
        """Nothing is open: for symmetry with `BankCache`."""


def _never() -> bool:
    return False
