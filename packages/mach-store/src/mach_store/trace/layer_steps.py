"""Owns what a bank sees of a trace: layer by layer, the distinct experts that a pass needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mach_store.trace.trace_events import Event, Ids, ModelPass


class LayerStep(NamedTuple):
    """One layer's part in one pass.

    Attributes:
        at: the layer's position among the MoE layers.
        tokens: of the pass.
        prefill: whether it processed a part of the prompt.
        experts: distinct ids, ascending.
        hottest_first: the same, those with most routes first; equal ones ascending.
        routes: expert → routes to it; empty for a single token, which never goes past the bank.
    """

    at: int
    tokens: int
    prefill: bool
    experts: list[int]
    hottest_first: list[int]
    routes: Mapping[int, int] = MappingProxyType({})


def layer_steps(events: Iterable[Event]) -> Iterator[LayerStep]:
    """The steps of a trace, in the order of their computation."""
    for event in events:
        if isinstance(event, ModelPass):
            for at, ids in enumerate(event.ids):
                yield LayerStep(at, len(ids), event.prefill, *_distinct(ids))


def _distinct(ids: Ids) -> tuple[list[int], list[int], dict[int, int]]:
    if len(ids) == 1:
        experts: list[int] = ids[0].tolist()
        # Already ascending; a router that chooses one twice is odd, not impossible.
        experts = list(dict.fromkeys(experts))
        return experts, experts, {}
    needed, counts = np.unique(ids, return_counts=True)
    ascending = needed.tolist()
    hottest_first = needed[np.argsort(-counts, kind="stable")].tolist()
    return ascending, hottest_first, dict(zip(ascending, counts.tolist(), strict=True))
