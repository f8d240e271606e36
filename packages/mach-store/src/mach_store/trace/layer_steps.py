"""Owns what a bank sees of a trace: layer by layer, the distinct experts that a pass needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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
        routes: of the pass to each of these.
    """

    at: int
    tokens: int
    prefill: bool
    experts: list[int]
    routes: list[int]

    @property
    def hottest_first(self) -> list[int]:
        """The experts with most routes first; equal ones ascending."""
        order = sorted(range(len(self.experts)), key=self.routes.__getitem__, reverse=True)
        return [self.experts[place] for place in order]


def layer_steps(events: Iterable[Event]) -> Iterator[LayerStep]:
    """The steps of a trace, in the order of their computation."""
    for event in events:
        if isinstance(event, ModelPass):
            for at, ids in enumerate(event.ids):
                experts, routes = _distinct(ids)
                yield LayerStep(at, len(ids), event.prefill, experts, routes)


def _distinct(ids: Ids) -> tuple[list[int], list[int]]:
    if len(ids) == 1:
        counts = Counter(ids[0].tolist())  # ascending already
        return list(counts), list(counts.values())
    needed, routes = np.unique(ids, return_counts=True)
    return needed.tolist(), routes.tolist()
