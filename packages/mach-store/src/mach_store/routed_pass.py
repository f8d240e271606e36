"""Owns what is known of one layer's part in one forward pass: which experts its tokens were routed to.

And the list of such parts that somebody asked to be kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RoutedPass(NamedTuple):
    """The routes of one layer in one forward pass.

    Attributes:
        layer: model layer index.
        ids: [tokens, k] expert ids.
    """

    layer: int
    ids: NDArray[np.uint16]


class RouteLog:
    """The routes since somebody last asked for them, while they are wanted."""

    def __init__(self) -> None:
        """Nothing is kept until `keep`."""
        self._passes: list[RoutedPass] | None = None

    @property
    def kept(self) -> bool:
        """Whether routes are wanted."""
        return self._passes is not None

    def keep(self, on: bool) -> None:
        """Whether routes are kept from now on; those so far are forgotten."""
        self._passes = [] if on else None

    def add(self, routed: RoutedPass) -> None:
        """One more, in the order of their computation; forgotten at once unless they are kept."""
        if self._passes is not None:
            self._passes.append(routed)

    def drain(self) -> list[RoutedPass]:
        """Those since the last call; none unless they are kept."""
        if not self._passes:
            return []
        passes, self._passes = self._passes, []
        return passes
