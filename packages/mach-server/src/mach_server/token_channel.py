"""Owns the way of tokens from the generation thread to one client's task: bounded, and never waited for.

The producer appends to a deque and wakes the event loop at most once until the loop has looked; with uvloop
that costs it about 6 µs a token. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mach_decode.request import StepEvent


@dataclass(frozen=True, slots=True)
class Failure:
    """The last item of a generation that raised."""

    error: Exception


class TokenChannel:
    """One generation's events, from its thread to a task on the event loop.

    Attributes:
        cancelled: whether nobody wants the rest; the generation thread asks before every step.
        overflowed: set, on the loop, when the client was further behind than the channel holds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        """Args: loop: where `take` is awaited; capacity: items held at most."""
        self.cancelled = False
        self.overflowed = asyncio.Event()
        self._loop, self._capacity = loop, capacity
        self._items: deque[StepEvent | Failure] = deque()
        self._filled = asyncio.Event()
        self._waking = False

    def put(self, item: StepEvent | Failure) -> None:
        """Hand over `item` without waiting; from any thread. Dropped when nobody wants it."""
        if self.cancelled:
            return
        if len(self._items) >= self._capacity:
            self.cancelled = True
            self._on_loop(self.overflowed.set)
            return
        self._items.append(item)
        # The flag is lowered before the loop looks, so an item appended after that look wakes it again.
        if not self._waking:
            self._waking = True
            self._on_loop(self._wake)

    def cancel(self) -> None:
        """Nobody wants the rest; from any thread."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        """End the stream for its reader at once, and cancel the generation behind it; on the loop."""
        self._items.append(Failure(error))
        self.cancelled = True
        self._filled.set()

    async def take(self) -> list[StepEvent | Failure]:
        """Everything that has arrived, at least one item; waits for it."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        items: list[StepEvent | Failure] = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def _wake(self) -> None:
        self._waking = False
        self._filled.set()

    def _on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop has ended, and the client's task with it
            self.cancelled = True
