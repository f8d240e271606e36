"""Owns what a bank and an eviction policy say to each other; knows no policy."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import Protocol

Key = tuple[int, int]  # (layer, expert)


class EvictionPolicy(Protocol):
    """What a bank asks of a policy; the bank tells it of every insertion, use and removal.

    Attributes:
        name: as in `LME_BANK_EVICTION_POLICY`.
        kept: experts that are given up only when nothing else is left; whoever pins the hot ones sets it.
            They may be in the bank or not.
    """

    name: str
    kept: Collection[Key]

    def insert(self, key: Key) -> None:
        """`key` has just been read into the bank, and is in use."""

    def touch(self, key: Key) -> None:
        """`key`, already in the bank, is in use."""

    def heard(self, layer: int, counts: Mapping[int, int]) -> None:
        """A prompt used `layer`'s experts so often (expert → tokens), past the bank for the most part.

        What the answer will need is like what the prompt needed: a policy that counts is wiser for it.
        """

    def remove(self, key: Key) -> None:
        """`key` has left the bank."""

    def victim(self, pinned: Container[Key]) -> Key | None:
        """The expert to give up next, never one of `pinned`; None when every expert is pinned."""

    def candidates(self, count: int, pinned: Container[Key]) -> list[Key]:
        """The next `count` experts to give up, in order: what `victim` and `remove` in turn would give.

        Fewer where all others are pinned. Nothing is changed: asking has no effect on later answers.
        """

    def set_floors(self, floors: Mapping[int, int]) -> None:
        """The pool has another size now: `floors` as at the beginning, for the same layers."""

    def announce(self, layer: int, experts: Collection[int]) -> None:
        """Somebody expects `layer` to need `experts` when its turn comes; a policy may make use of it."""
