"""Owns what is known of one layer's part in one forward pass: which experts its tokens were routed to."""

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
