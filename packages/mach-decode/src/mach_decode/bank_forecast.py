"""Owns the forecast of decode speed with banks of other sizes, from an engine's own traffic.

    tokens/s = 1 / (compute seconds per token + misses per token × seconds per miss)

Hit rates come from a `MissRatioCurve`; times and misses are measured while tokens are decoded. Following
routes may cost one percent of that time: it is done in bursts, with a pause after each until its cost has
come down to that. What the miniatures hold stays as it is during a pause, so that a burst's first tokens only
bring it up to date.

Prompts are left out on purpose. A long one needs most experts of a layer whatever it says, and reads each
missing one once per chunk, past the bank, while it computes: that follows from the bank's size alone, and no
policy or hot expert matters. Mixed into one hit rate it would hide what the bank does for each token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mach_decode.loaded_model import ExpertStore
from mach_decode.route_observer import RouteObservers
from mach_store.bank_cache import BankCache
from mach_store.counters import LayerCounters
from mach_store.miss_ratio_curve import HALF_LIFE_TOKENS, MissRatioCurve
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.routed_pass import RoutedPass

MOST_COST = 0.01
"""Part of the time of decoding that following routes may take."""

STRETCH_TOKENS = 32
"""Tokens between two looks at the bank's counters."""

BURST_STRETCHES = 2
"""Stretches that are followed at least before a pause."""

SETTLE_TOKENS = 16
"""Tokens after a pause that count for nothing: what the miniatures hold is from before it."""

SCOPE = "decode"
"""What all its figures are about: decoded tokens. Prompts are in none of them."""

WHOLE = "every expert is in memory: nothing is missed, and no other bank would do better"
"""Why a bank that holds everything has no curve."""


@dataclass(slots=True)
class DecodeTimes:
    """Sums over decoded tokens, of which older ones count less.

    Attributes:
        tokens: decoded; an answer's first token, which prefill brings, is none.
        seconds: of decoding them, without those of following routes.
        waited: the part of it in which passes stood still for reads.
        hits: experts found in the bank.
        misses: experts read.
        followed: seconds of following routes.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    followed: float = 0.0

    def add(self, tokens: int, seconds: float, counted: LayerCounters, followed: float) -> None:
        """Add `tokens` more, and what they took."""
        remains = 0.5 ** (tokens / HALF_LIFE_TOKENS)
        self.tokens = self.tokens * remains + tokens
        self.seconds = self.seconds * remains + seconds
        self.waited = self.waited * remains + counted.wait_seconds
        self.hits = self.hits * remains + counted.hits
        self.misses = self.misses * remains + counted.misses
        self.followed = self.followed * remains + followed

    def tokens_per_second(self, hit_rate: float | None) -> float | None:
        """Speed at a hit rate; None while it, or what a miss costs, is not known."""
        if hit_rate is None or not self.tokens:
            return None
        misses = (1 - hit_rate) * (self.hits + self.misses) / self.tokens
        if misses and not self.misses:
            return None
        waits = misses * self.waited / self.misses if misses else 0.0
        seconds = max(0.0, self.seconds - self.waited) / self.tokens + waits
        return 1 / seconds if seconds > 0 else None

    def as_dict(self) -> dict[str, float | None]:
        """For reports; what is not known is None."""
        tokens, needed = self.tokens, self.hits + self.misses
        return {
            "references_per_token": needed / tokens if tokens else None,
            "compute_seconds_per_token": max(0.0, self.seconds - self.waited) / tokens if tokens else None,
            "seconds_per_miss": self.waited / self.misses if self.misses else None,
            "measured_hit_rate": self.hits / needed if needed else None,
            "measured_tokens_per_second": tokens / self.seconds if self.seconds else None,
            "cost": self.followed / self.seconds if self.seconds else None,
        }


class BankForecast:
    """What banks of other sizes would do for one engine.

    It is told of every step, between two steps, in the thread that owns MLX.
    """

    def __init__(
        self,
        store: ExpertStore,
        observers: RouteObservers,
        *,
        dispatch: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin; nothing is known yet.

        Args:
            store: whose bank is looked at.
            observers: where routes come from.
            dispatch: as in `LoadedModel`.
            clock: seconds.
        """
        self._bank, self._reason = _bank_of(store, dispatch)
        self._observers, self._clock = observers, clock
        self._follower: _Follower | None = None
        self._following = False
        self._burst = 0
        self._times = DecodeTimes()
        # Of the present stretch: when it began, with which counts, and its steps.
        self._began: float | None = None
        self._before = LayerCounters()
        self._steps = 0

    def step_ended(self, *, prefill: bool) -> None:
        """A step is over. Args: prefill: whether it processed a chunk of the prompt."""
        if self._bank is None or prefill:
            return
        if self._began is None:
            self._begin(self._bank)
            return
        self._steps += 1
        if self._steps == STRETCH_TOKENS:
            self._look(self._bank)
            self._begin(self._bank)

    def answer_ended(self, *, finished: bool) -> None:
        """The answer is over. Args: finished: False leaves its last tokens out, of broken-off passes."""
        if self._bank is not None and finished and self._steps:
            self._look(self._bank)
        self._began, self._steps = None, 0

    def as_dict(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports as `miss_ratio_curve`."""
        if self._bank is None or self._bank.whole:
            return {"scope": SCOPE, "points": None, "reason": self._reason or WHOLE}
        if self._follower is None:
            return {"scope": SCOPE, "points": None, "reason": "no token has been decoded yet"}
        curve, times = self._follower.curve, self._times
        return {
            "scope": SCOPE,
            "points": [
                {**asdict(point), "tokens_per_second": times.tokens_per_second(point.hit_rate)}
                for point in curve.points()
            ],
            "reason": None,
            "keys": curve.keys,
            "sampled_keys": curve.sampled_keys,
            "sample_rate": curve.sample_rate,
            "references": curve.references,
            "tokens": curve.tokens,
            "half_life_tokens": HALF_LIFE_TOKENS,
            **times.as_dict(),
        }

    def _begin(self, bank: BankCache) -> None:
        """Begin a stretch."""
        self._decide(bank)
        if self._follower is not None:
            self._follower.seconds = 0.0
        self._before, self._steps = bank.totals(), 0
        self._began = self._clock()

    def _look(self, bank: BankCache) -> None:
        """End a stretch."""
        assert self._began is not None
        seconds = self._clock() - self._began
        followed = 0.0 if self._follower is None else self._follower.seconds
        counted = bank.totals().since(self._before)
        self._times.add(self._steps, seconds - followed, counted, followed)
        self._burst += 1

    def _decide(self, bank: BankCache) -> None:
        """Whether the next stretch is followed."""
        if bank.whole or (self._follower is not None and self._follower.slots != bank.slots):
            self._follow(False)
            self._follower = None
        if bank.whole:
            return
        if self._follower is None:
            self._follower = _Follower(bank, self._clock)
            self._follow(True)
        elif not self._following or self._burst >= BURST_STRETCHES:
            self._follow(self._times.followed <= MOST_COST * self._times.seconds)

    def _follow(self, on: bool) -> None:
        if on == self._following:
            return
        assert self._follower is not None
        if on:
            self._follower.resume()
            self._observers.add(self._follower)
        else:
            self._observers.remove(self._follower)
        self._following, self._burst = on, 0


class _Follower:
    """The `RouteObserver` that feeds a curve.

    Attributes:
        slots: of the bank that the curve is relative to.
        seconds: that it took; set to 0 by whoever adds them up.
    """

    def __init__(self, bank: BankCache, clock: Callable[[], float]) -> None:
        self.curve, self.slots, self.seconds = MissRatioCurve(bank.shapes), bank.slots, 0.0
        self._clock = clock
        self._unsettled = 0

    def resume(self) -> None:
        """Routes come again after a pause, or for the first time."""
        self._unsettled = SETTLE_TOKENS if self.curve.tokens else 0

    def answer_began(self, prompt_tokens: int) -> None:
        """See `RouteObserver`."""

    def routed(self, passes: Sequence[RoutedPass], *, prefill: bool) -> None:
        """See `RouteObserver`; a prompt's routes are passed over."""
        if not prefill:
            began = self._clock()
            self.curve.feed(passes, counts=not self._unsettled)
            self._unsettled = max(0, self._unsettled - 1)
            self.seconds += self._clock() - began

    def answer_ended(self, *, finished: bool) -> None:
        """See `RouteObserver`."""


def _bank_of(store: ExpertStore, dispatch: str) -> tuple[BankCache | None, str]:
    """The bank to look at, or why there is none."""
    if isinstance(store, ResidentStackedExpertCache):
        return None, "every expert is in memory, and there is no bank: --streaming has one"
    if not isinstance(store, BankCache):
        return None, "the experts are mlx-lm's own, and there is no bank: --streaming has one"
    if dispatch not in ("gather", "in-graph"):
        return None, "LME_USE_GATHER_DISPATCH=0 reads every expert anew and leaves the bank empty"
    return store, ""
