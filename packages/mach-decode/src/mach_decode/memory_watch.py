"""Owns the thread that watches the memory that is left and asks for a smaller or larger expert bank.

It only asks: whoever runs the engine carries a wish out between two steps (`Engine.heed_memory`), because one
thread owns MLX. It reads files, takes no lock that a step would wait for, and knows nothing of requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mach.preflight.machine import this_machine
from mach_store.bank_cache import BankCache
from mach_store.errors import BankResizeError
from mach_store.memory_reading import MemoryReading, read_memory
from mach_store.pressure_rule import BankState, PressureRule, Wish, reserve_of

log = logging.getLogger("mach.memory")

INTERVAL = 0.5
"""Seconds between two readings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryState:
    """What the watch has seen and done; replaced, never changed in place.

    Attributes:
        watching: whether the bank follows the memory that is left.
        why_not: why it does not; None if it does.
        reserve_bytes: room that is kept.
        reading: the latest look; None before the first.
        shrinks: how often the bank gave memory back.
        grows: how often it took some again.
        last: the latest of both, as the log has it; None before the first.
    """

    watching: bool
    why_not: str | None
    reserve_bytes: int = 0
    reading: MemoryReading | None = None
    shrinks: int = 0
    grows: int = 0
    last: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        reading = self.reading
        return {
            "watching": self.watching,
            "why_not": self.why_not,
            "reserve_bytes": self.reserve_bytes,
            "room_bytes": None if reading is None else reading.room_bytes,
            "room_source": None if reading is None else reading.source,
            "stalled_percent": None if reading is None else reading.stalled,
            "bank_shrinks": self.shrinks,
            "bank_grows": self.grows,
            "last_change": self.last,
        }


def unwatched(why: str) -> MemoryState:
    """The state of an engine whose memory nobody watches."""
    return MemoryState(watching=False, why_not=why)


class MemoryWatch:
    """Watches for one bank.

    Attributes:
        state: for reports, from any thread.
    """

    def __init__(
        self,
        bank: BankCache,
        wake: Callable[[], None],
        *,
        read: Callable[[], MemoryReading] = read_memory,
        rule: PressureRule | None = None,
        interval: float = INTERVAL,
    ) -> None:
        """Args: wake: called from the watch's thread when there is a wish; the others are for tests."""
        self._bank, self._wake, self._read, self._interval = bank, wake, read, interval
        self._rule = rule or PressureRule(
            declared=bank.declared_bytes,
            least=bank.least_bytes,
            reserve=reserve_of(this_machine().total_bytes),
        )
        refusal = bank.resize_refusal
        self.state = MemoryState(watching=refusal is None, why_not=refusal, reserve_bytes=self._rule.reserve)
        self._wish: Wish | None = None
        self._told = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mach-memory", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop; returns when the thread has ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def asks(self) -> bool:
        """Whether there is a wish to carry out."""
        return self._wish is not None

    def look(self, now: float) -> None:
        """Read once and ask for a change if it takes one. Args: now: monotonic seconds."""
        reading = self._read()
        self.state = replace(self.state, reading=reading)
        if self._wish is not None:
            return  # the next reading is worth more once it has been carried out
        bank = self._bank
        arena = bank.arena_bytes - bank.scratch_bytes
        wish = self._rule.decide(reading, now, BankState(bank.budget_bytes, bank.unfilled_bytes, arena))
        if wish is None:
            return
        if not self.state.watching:
            if not self._told:
                self._told = True
                log.warning("memory: %s; the expert bank keeps its size: %s", wish.reason, self.state.why_not)
            return
        self._wish = wish
        self._wake()

    def heed(self) -> None:
        """Carry the wish out, if there is one; between two steps, in the engine's thread."""
        wish = self._wish
        if wish is None:
            return
        before = self._bank.nbytes
        try:
            after = self._bank.resize(wish.budget)
        except BankResizeError as error:
            self.state = replace(self.state, watching=False, why_not=str(error))
            log.warning("memory: %s; %s", wish.reason, error)
        else:
            self._count(wish, before, after)
        finally:
            self._wish = None

    def _count(self, wish: Wish, before: int, after: int) -> None:
        if after == before:
            return
        verb = "shrinks" if after < before else "grows"
        last = f"{wish.reason}: the expert bank {verb} from {before / 1e9:.3f} to {after / 1e9:.3f} GB"
        log.log(logging.WARNING if after < before else logging.INFO, "memory: %s", last)
        state = self.state
        self.state = replace(
            state,
            shrinks=state.shrinks + (after < before),
            grows=state.grows + (after > before),
            last=last,
        )

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.look(time.monotonic())
