"""Owns the decision how large a bank may be under memory pressure; it looks at nothing by itself.

Shrinking is quick and growing slow. Below the reserve the bank gives up what brings the room to twice the
reserve; it grows again in steps, after the room has been ample for half a minute, and never so far that less
than twice the reserve would be left. Between these two bounds nothing happens.
"""

from __future__ import annotations

from typing import NamedTuple

from mach_store.memory_reading import WARNING, MemoryReading

RESERVE_BYTES = 256 << 20
"""Room that is kept, or a RESERVE_SHARE-th of all memory if that is less."""
RESERVE_SHARE = 32
STEPS = 8
"""The bank grows, and gives way to stalls, by one part in so many of what was declared."""
STALLED_PERCENT = 10.0
"""Waiting for memory in so much of the time is pressure, if there is little room as well."""
LITTLE_ROOM = 4
"""In reserves."""
CALM_PERCENT = 1.0
GROW_AFTER = 30.0
"""Seconds of ample room before the bank grows."""
GROW_EVERY = 10.0
"""Seconds between two steps of growing, or of giving way to stalls: PSI is a mean over ten."""


class BankState(NamedTuple):
    """The bank as it is, or will be once the last wish has been carried out; all in bytes.

    Attributes:
        budget: what it may take.
        unfilled: of that, what no expert has filled since the bank grew: taken, but not seen in readings.
        arena: what a prompt will take besides once experts have no slot any more; 0 if it does already.
    """

    budget: int
    unfilled: int = 0
    arena: int = 0


class Wish(NamedTuple):
    """A budget that the bank should have, in bytes, and why."""

    budget: int
    reason: str


class PressureRule:
    """Says when and by how much.

    Attributes:
        declared: bytes beyond which the bank never grows.
        least: bytes below which it never shrinks.
        reserve: room that is kept.
    """

    def __init__(self, *, declared: int, least: int, reserve: int) -> None:
        """All in bytes."""
        self.declared, self.least, self.reserve = declared, least, reserve
        self._step = max(1, declared // STEPS)
        self._roomy_since: float | None = None
        self._changed = float("-inf")

    def decide(self, reading: MemoryReading, now: float, bank: BankState) -> Wish | None:
        """What the bank should be, if not what it is.

        Args:
            reading: of this moment.
            now: monotonic seconds.
            bank: its size.
        """
        room = reading.room_bytes
        if room is not None and room < self.reserve:
            give = max(2 * self.reserve - room, self._step) + bank.arena
            return self._shrunk(bank, give, now, f"{_gb(room)} are left ({reading.source})")
        little = room is None or room < LITTLE_ROOM * self.reserve
        if reading.level >= WARNING or (little and reading.stalled >= STALLED_PERCENT):
            self._roomy_since = None
            if now - self._changed < GROW_EVERY:
                return None
            told = f"{reading.stalled:.0f} % of the time something waits for memory"
            if reading.level >= WARNING:
                told = f"memory pressure has level {reading.level}"
            return self._shrunk(bank, self._step + bank.arena, now, told)
        return self._grown(reading, now, bank)

    def _shrunk(self, bank: BankState, give: int, now: float, reason: str) -> Wish | None:
        self._roomy_since = None
        budget = max(self.least, bank.budget - give)
        if budget >= bank.budget:
            return None
        self._changed = now
        return Wish(budget, f"{reason}, and {_gb(self.reserve)} are kept free")

    def _grown(self, reading: MemoryReading, now: float, bank: BankState) -> Wish | None:
        step = min(self._step, self.declared - bank.budget)
        room = reading.room_bytes
        ample = room is None or room - bank.unfilled >= 2 * self.reserve + step
        if step <= 0 or not ample or reading.stalled >= CALM_PERCENT:
            self._roomy_since = None
            return None
        if self._roomy_since is None:
            self._roomy_since = now
        if now - self._roomy_since < GROW_AFTER or now - self._changed < GROW_EVERY:
            return None
        self._changed = now
        left = "no pressure" if room is None else f"{_gb(room)} are left"
        return Wish(bank.budget + step, f"{left} ({reading.source}) since {now - self._roomy_since:.0f} s")


def reserve_of(total_bytes: int | None) -> int:
    """The room to keep on a machine, or in a container, with so much memory; in bytes."""
    return RESERVE_BYTES if total_bytes is None else min(RESERVE_BYTES, total_bytes // RESERVE_SHARE)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f} GB"
