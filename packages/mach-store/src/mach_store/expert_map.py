"""Owns the picture of a store at one moment: which experts are in memory, and how often each was used."""

from __future__ import annotations

from array import array
from typing import NamedTuple


class LayerExperts(NamedTuple):
    """One layer's experts, copied out of a store.

    Attributes:
        resident: a byte for each expert, 1 where it is in memory.
        uses: for each expert, in how many forward passes it was needed, or None where the host does not see
            the routes (every expert is in memory, and the graph finds its slots by itself).
    """

    resident: bytes
    uses: array[int] | None
