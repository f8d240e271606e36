"""Owns the Python twin of the native predictor of the next layer's experts, for replaying recorded routes.

`native/src/expert_stream/predictor.h` says how it predicts and why; `tests/test_expert_predictor.py` compares
the two, call by call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

MOST_BYTES = 64 << 20
MOST_IDS = 64
CANDIDATES = 16
CHANCE_CLASSES = 16
WINDOW = 256
LEAST = 16
PATIENCE = 256
REST = 8
_SHIFT = 6
_STEP = (65536 >> _SHIFT) - 1


@dataclass(slots=True)
class LayerScore:
    """What came of one layer's candidates since the start.

    Attributes:
        judged: all candidates whose fate is known.
        judged_used: those of them that the layer's next pass asked for.
        given: those that were worth a read.
        given_used: those of them that were asked for.
    """

    judged: int = 0
    judged_used: int = 0
    given: int = 0
    given_used: int = 0


@dataclass(slots=True)
class _Tally:
    named: int = 0
    used: int = 0

    @property
    def open(self) -> bool:
        return self.named >= LEAST and 2 * self.used >= self.named


@dataclass(slots=True)
class _Layer:
    follows: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
    tallies: list[_Tally] = field(
        default_factory=lambda: [_Tally() for _ in range(CHANCE_CLASSES + CANDIDATES)]
    )
    score: LayerScore = field(default_factory=LayerScore)
    barren: int = 0


class ExpertPredictor:
    """Which experts the next MoE layer will probably ask for.

    Layers are counted in visiting order; the one after the last is the first of the next token.
    """

    def __init__(self, layers: int, experts: int) -> None:
        """One that has seen nothing yet; 2 × layers × experts² bytes. No bound here: this is no server."""
        assert layers > 0 < experts, "a predictor needs a layer and an expert"
        self._experts = experts
        self._layers = [_Layer(np.zeros((experts, experts), np.uint16)) for _ in range(layers)]
        self._before: list[int] = []
        self._last: int | None = None
        self._candidates: list[tuple[int, int, bool]] = []  # (expert, class, given)

    def _after(self, layer: int) -> int:
        return (layer + 1) % len(self._layers)

    def observe(self, layer: int, ids: Sequence[int]) -> None:
        """The routes of one pass of `layer`, repeated or not, have become known."""
        distinct = list(dict.fromkeys(ids))
        if not 0 < len(distinct) <= MOST_IDS:
            self.forget_pass()
            return
        if self._last is not None and self._after(self._last) == layer:
            self._judge(layer, set(distinct))
            self._learn(self._last, distinct)
        self._candidates = []
        self._before, self._last = distinct, layer

    def _judge(self, layer: int, asked: set[int]) -> None:
        at = self._layers[layer]
        for expert, number, given in self._candidates:
            tally, used = at.tallies[number], expert in asked
            if tally.named == WINDOW:
                tally.named //= 2
                tally.used //= 2
            tally.named += 1
            tally.used += used
            at.score.judged += 1
            at.score.judged_used += used
            at.score.given += given
            at.score.given_used += given and used

    def _learn(self, layer: int, followers: list[int]) -> None:
        follows = self._layers[layer].follows
        for source in self._before:
            follows[source] -= follows[source] >> _SHIFT
            follows[source, followers] += _STEP

    def _resting(self, layer: int) -> bool:
        at = self._layers[layer]
        if at.barren < PATIENCE:
            return False
        at.barren += 1
        return at.barren % REST != 0

    def ranked(self, layer: int, ids: Sequence[int], present: Collection[int] = ()) -> list[tuple[int, int]]:
        """Experts of the layer after `layer` with the votes of `ids` (distinct), most votes first.

        None that is `present`, and none without a vote; equal ones by number.
        """
        votes = self._layers[layer].follows[list(ids)].sum(axis=0, dtype=np.uint32).tolist()
        found = [(expert, vote) for expert, vote in enumerate(votes) if vote and expert not in present]
        return sorted(found, key=lambda pair: -pair[1])

    def guess(
        self,
        layer: int,
        ids: Sequence[int],
        ranked: Sequence[int],
        present: Collection[int],
        most: int,
    ) -> list[int]:
        """Experts of the layer after `layer` that are worth a read, at most `most`.

        Args:
            layer: as given to `observe`, as are `ids`.
            ids: its routes, for guesses by what followed them; empty for none.
            ranked: guesses, the likeliest first by somebody else's reckoning, given first; empty for none.
            present: experts of the layer after that are in memory.
            most: experts that can be read.
        """
        self._candidates = []
        following = self._after(layer)
        if self._resting(following):
            return []
        self._candidates = [
            (expert, CHANCE_CLASSES + rank, False)
            for rank, expert in enumerate(islice(ranked, CANDIDATES))
            if expert not in present
        ]
        distinct = list(dict.fromkeys(ids))
        if 0 < len(distinct) <= MOST_IDS:
            self._candidates += [
                (expert, (votes // len(distinct)) * CHANCE_CLASSES >> 16, False)
                for expert, votes in self.ranked(layer, distinct, present)[:CANDIDATES]
            ]
        return self._give(following, most)

    def _give(self, layer: int, most: int) -> list[int]:
        at = self._layers[layer]
        given: dict[int, int] = {}  # expert → place of the candidate
        worth = False
        for place, (expert, number, _) in enumerate(self._candidates):
            if at.tallies[number].open:
                worth = True
                if len(given) < most:
                    given.setdefault(expert, place)
        self._candidates = [
            (expert, number, given.get(expert) == place)
            for place, (expert, number, _) in enumerate(self._candidates)
        ]
        if worth:
            at.barren = 0
        elif at.barren < PATIENCE:
            at.barren += 1
        return list(given)

    def forget_pass(self) -> None:
        """An unfinished pass was given up: what comes next follows nothing."""
        self._last = None
        self._candidates = []

    def score(self, layer: int) -> LayerScore:
        """What came of the layer's candidates."""
        return self._layers[layer].score

    def is_open(self, layer: int) -> bool:
        """Whether every pass is looked at, because of late a candidate was worth a read."""
        return self._layers[layer].barren < PATIENCE
