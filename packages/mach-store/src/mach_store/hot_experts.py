"""Owns which experts have been hot of late: routes per expert, older ones counting for less; no bank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

HALF_LIFE_PER_EXPERT = 16
"""Routes of a layer, for each of its experts, after which earlier ones count half: with 32 experts and top 4
128 tokens."""


class HotExperts:
    """Decayed counts of routes."""

    def __init__(self, layers: Mapping[int, int]) -> None:
        """Nothing has been routed yet. Args: layers: model layer index → number of experts."""
        self._fresh = {layer: np.zeros(experts, np.float64) for layer, experts in layers.items()}
        self._heat = {layer: np.zeros(experts, np.float64) for layer, experts in layers.items()}

    def count(self, layer: int, ids: NDArray[np.uint16]) -> None:
        """A layer's routes, of any shape."""
        fresh = self._fresh[layer]
        fresh += np.bincount(ids.reshape(-1), minlength=len(fresh))

    def age(self) -> None:
        """Let what was counted since the last call join what was counted before, which ages by it."""
        for layer, fresh in self._fresh.items():
            heat = self._heat[layer]
            heat *= 0.5 ** (fresh.sum() / (HALF_LIFE_PER_EXPERT * len(heat)))
            heat += fresh
            fresh[:] = 0

    def hottest(self, layer: int, count: int) -> list[int]:
        """The layer's hottest experts as of the last ageing, hottest first; none that was never used.

        Of equally hot ones the lower number comes first.
        """
        heat = self._heat[layer]
        order = np.argsort(-heat, kind="stable")[:count]
        return [int(expert) for expert in order if heat[expert] > 0]
