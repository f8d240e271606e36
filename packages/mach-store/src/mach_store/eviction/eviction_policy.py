"""Owns what a bank and an eviction policy say to each other; knows no policy."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import NamedTuple, Protocol

Key = tuple[int, int]  # (layer, expert)


class Memory(NamedTuple):
    """Uses that age (`DecayedCounts`), as one part of what a policy ranks experts by.

    Attributes:
        growth: each use of a layer is worth so many times the one before, 1 or more.
        weight: the count, divided by what a use is worth now, counts for so much.
    """

    growth: float
    weight: float


class OrderRule(NamedTuple):
    """A policy's order in so few words that somebody else can keep it up to date, use by use.

    An expert's value is the sum over the memories; the lowest goes first, then the lowest layer and expert.

    Attributes:
        memories: if there are none, the value is the time of the last use.
        by_distance: the value is a chance p, and who goes first has the largest d + L × (1/p - 1), as
            `LookaheadPolicy` has it; of those with equal distances of one layer, the least likely.
    """

    memories: tuple[Memory, ...]
    by_distance: bool


class Standing(NamedTuple):
    """What an order goes by in one layer.

    Attributes:
        worths: for each memory of the rule what a use is worth; without memories the time now.
        counts: for each memory the counts of all experts, one memory after the other; without memories when
            each expert was used last, 0 for never.
    """

    worths: list[float]
    counts: list[float]


class EvictionPolicy(Protocol):
    """What a bank asks of a policy; the bank tells it of every insertion, use and removal.

    Attributes:
        name: as in `LME_BANK_EVICTION_POLICY`.
        kept: experts that are given up only when nothing else is left; whoever pins the hot ones sets it.
            They may be in the bank or not.
    """

    name: str
    kept: Collection[Key]

    @property
    def rule(self) -> OrderRule:
        """The policy's order, but for floors, kept and pinned experts."""

    @property
    def latest(self) -> int | None:
        """The layer that was used last, if the order depends on it."""

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

    def standing(self, layer: int, experts: int) -> Standing:
        """What the order in `layer`, which has so many experts, goes by now."""
