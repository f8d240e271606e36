"""Owns the thread that writes a trace, and the events that wait for it: whoever tells them never waits.

A disk that stalls, fails or fills ends the recording, with a reason. Knows no engine, and not the format.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from mach_store.errors import TraceWriteError
from mach_store.trace import trace_writer
from mach_store.trace.trace_events import AnswerEnded, Event, encoded_bytes
from mach_store.trace.trace_header import Ending
from mach_store.trace.trace_writer import TraceWriter

MOST_WAITING_BYTES = 16 << 20
"""While so many bytes of events wait, as they are encoded, no more is taken; in memory ids may be wider."""

RecordingState = Literal["recording", "finished", "limit", "error"]


class _Batch(NamedTuple):
    events: list[Event]
    nbytes: int


class TraceQueue:
    """Takes a trace's events from one thread, and writes them in its own.

    Events go over in batches: when a block's worth has come together, and at the end of each answer. The
    thread starts with the first batch. If the process ends, it is not waited for: call `finish`.

    Attributes:
        writer: what the thread writes with; read its attributes, and no more.
        state: `recording`; `finished` by `finish`; `limit` and `error` by itself, at any moment.
        reason: why it ended by itself, for people.
    """

    def __init__(self, writer: TraceWriter, told: Callable[[str], object] | None = None) -> None:
        """Begin with nothing.

        Args:
            writer: of the trace; nobody else writes with it from now on.
            told: called with `reason`, once, if the recording ends by itself; perhaps in the thread.
        """
        self.writer = writer
        self.state: RecordingState = "recording"
        self.reason = ""
        self._told = told
        self._changed = threading.Condition()
        self._batches: deque[_Batch] = deque()
        self._waiting_bytes = 0
        self._ending: Ending | None = None
        self._thread: threading.Thread | None = None
        self._events: list[Event] = []
        self._nbytes = 0

    def add(self, event: Event) -> None:
        """Hand over `event`; nothing, if the recording has ended."""
        if self.state != "recording":
            self._events, self._nbytes = [], 0
            return
        size = encoded_bytes(event, self.writer.header)
        if self._nbytes + size > trace_writer.BLOCK_BYTES:
            self._hand_over()
        self._events.append(event)
        self._nbytes += size
        if isinstance(event, AnswerEnded):
            self._hand_over()

    def give_up(self, reason: str) -> None:
        """End the recording as an error; what was handed over is still written, and becomes a trace."""
        self._hand_over()
        with self._changed:
            if self.state != "recording":
                return
            self.state, self.reason, self._ending = "error", reason, "error"
            self._awake()
        if self._told is not None:
            self._told(reason)

    def finish(self) -> None:
        """End the recording, and wait until the trace is durable and has its name.

        Raises:
            TraceWriteError: the disk refused; what was written before is under the partial name. If the
                recording ended by itself before, nothing is raised.
        """
        self._hand_over()
        with self._changed:
            ended_by_itself = self.state != "recording"
            self._ending = self._ending or "finished"
            self._awake()
        assert self._thread is not None, "it was started a moment ago"
        self._thread.join()
        if self.state == "error" and not ended_by_itself:
            raise TraceWriteError(self.reason, path=self.writer.partial)

    def discard(self) -> None:
        """Delete the trace, to which nothing was handed over."""
        assert self._thread is None and not self._events, "a recording with answers is kept"
        self.writer.discard()

    def _hand_over(self) -> None:
        events, nbytes = self._events, self._nbytes
        self._events, self._nbytes = [], 0
        if not events:
            return
        with self._changed:
            if self.state != "recording":
                return
            full = self._waiting_bytes >= MOST_WAITING_BYTES
            if not full:
                self._batches.append(_Batch(events, nbytes))
                self._waiting_bytes += nbytes
                self._awake()
        if full:
            self.give_up(
                f"{self.writer.partial}: the disk is too slow for the trace: {self._waiting_bytes} bytes "
                "wait to be written"
            )

    def _awake(self) -> None:
        """Under the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mach-trace", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _run(self) -> None:
        writer = self.writer
        try:
            while not writer.full and (batch := self._next()) is not None:
                for event in batch.events:
                    if not writer.full:
                        writer.add(event)
            writer.finish(self._ending or "finished")
            if writer.full:
                self._ended("limit", f"the trace has its {writer.max_bytes} bytes")
            else:
                self._ended("finished", "")
        except TraceWriteError as error:
            writer.abandon()
            self._ended("error", str(error))
        except BaseException as error:
            writer.abandon()
            self._ended("error", f"{writer.partial}: the thread that writes the trace failed: {error!r}")
            raise

    def _next(self) -> _Batch | None:
        """What is to be written next; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._ending)
            if not self._batches:
                return None
            batch = self._batches.popleft()
            self._waiting_bytes -= batch.nbytes
            return batch

    def _ended(self, state: RecordingState, reason: str) -> None:
        with self._changed:
            self._batches.clear()
            if self.state != "recording":
                return
            self.state, self.reason = state, reason
            told = self._told if self._ending is None else None
        if told is not None:
            told(reason)
