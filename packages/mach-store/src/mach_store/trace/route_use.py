"""Owns how a trace's decoded tokens used the experts: how often each, and how soon again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mach_store.trace.layer_steps import LayerStep
from mach_store.trace.trace_header import TraceHeader

LONGEST = 4096
"""Longer gaps count as this one."""


class RouteUse:
    """Counts over decode passes; passes over prompts are left out.

    Attributes:
        passes: for each layer, by position, decode passes that came to it.
        uses: [layers, experts] of these, those that needed the expert.
        gaps: [LONGEST + 1] uses by the number of passes since the expert's use before, 1 for the next pass;
            none at 0, and none of first uses.
    """

    def __init__(self, header: TraceHeader) -> None:
        """Args: header: of the trace."""
        layers = len(header.layers)
        self.passes = np.zeros(layers, np.int64)
        self.uses = np.zeros((layers, header.experts), np.int64)
        self.gaps = np.zeros(LONGEST + 1, np.int64)
        self._last = np.zeros((layers, header.experts), np.int64)

    def step(self, step: LayerStep) -> None:
        """One layer's part in one pass."""
        if step.prefill:
            return
        at, experts = step.at, step.experts
        self.passes[at] += 1
        self.uses[at, experts] += 1
        now, last = self.passes[at], self._last[at, experts]
        gaps = now - last[last > 0]
        np.add.at(self.gaps, np.minimum(gaps, LONGEST), 1)
        self._last[at, experts] = now

    @property
    def frequency(self) -> NDArray[np.float64]:
        """[layers, experts] part of the decode passes that needed the expert, 0 to 1."""
        frequency: NDArray[np.float64] = self.uses / np.maximum(self.passes, 1)[:, None]
        return frequency

    @property
    def reused_within(self) -> NDArray[np.float64]:
        """[LONGEST] part of the uses, first ones left out, that came at most 1, 2, … passes later."""
        within: NDArray[np.float64] = np.cumsum(self.gaps[1:]) / max(int(self.gaps.sum()), 1)
        return within
