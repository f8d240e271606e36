"""Owns how a load tells how far it is, and the reading of weights piece by piece; it knows no terminal."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

LoadListener = Callable[[str, int, int], None]
"""(what is read, bytes that are in memory, of so many); from the thread that loads."""

PIECE_BYTES = 64 << 20
"""Weights that are read between two reports."""


def unheard(label: str, done: int, total: int) -> None:
    """A `LoadListener` for nobody."""


def evaluate_weights(model: nn.Module, listener: LoadListener) -> None:
    """Bring every weight of `model` into memory, telling `listener` after each piece."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total, done = sum(array.nbytes for array in arrays), 0
    piece: list[mx.array] = []
    listener("weights", 0, total)
    for array in arrays:
        piece.append(array)
        size = sum(part.nbytes for part in piece)
        if size >= PIECE_BYTES or array is arrays[-1]:
            mx.eval(piece)
            done += size
            piece = []
            listener("weights", done, total)
