"""Owns a running recording: what an engine tells of its routes becomes a trace, and no answer is harmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mach_decode.engine import Engine
from mach_decode.route_observer import RouteObservers
from mach_decode.trace_run import trace_header
from mach_store.routed_pass import RoutedPass
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, Ids, ModelPass
from mach_store.trace.trace_queue import RecordingState, TraceQueue
from mach_store.trace.trace_writer import TraceWriter


class TraceRecorder:
    """A `RouteObserver` whose trace a thread writes. It leaves the engine when nothing more is taken.

    Attributes:
        answers: that began.
    """

    def __init__(
        self, observers: RouteObservers, writer: TraceWriter, told: Callable[[str], object] | None = None
    ) -> None:
        """Record from now on.

        Args:
            observers: the engine's, between two answers.
            writer: of the trace, with nothing in it.
            told: called with `reason`, once, if the recording ends by itself; perhaps in another thread.

        Raises:
            RoutesUnseenError: the experts are the model's own.
        """
        self._observers, self._queue = observers, TraceQueue(writer, told)
        self._layers = {layer: at for at, layer in enumerate(writer.header.layers)}
        self._prefill, self._pass = True, list[Ids]()
        self.answers = self._passes = 0
        self._answering, self._observing = False, True
        observers.add(self)

    @property
    def state(self) -> RecordingState:
        """`recording`; `finished` by `finish`; `limit` and `error` by itself, at any moment."""
        return self._queue.state

    @property
    def reason(self) -> str:
        """Why it ended by itself, for people."""
        return self._queue.reason

    def answer_began(self, prompt_tokens: int) -> None:
        """See `RouteObserver`."""
        if self._ended():
            return
        self._answering = True
        self.answers += 1
        self._queue.add(AnswerBegan(prompt_tokens))

    def routed(self, passes: Sequence[RoutedPass], *, prefill: bool) -> None:
        """See `RouteObserver`."""
        if self._ended() or not self._answering:
            return  # of an answer whose beginning was not seen
        for layer, ids in passes:
            at = self._layers[layer]
            new_pass = at == 0 or prefill != self._prefill
            if new_pass:
                self._end_pass()
            if at != len(self._pass) or (self._pass and len(ids) != len(self._pass[0])):
                self._queue.give_up(f"layer {layer} was computed out of turn")
                self._leave()
                return
            self._prefill = prefill
            self._pass.append(ids)
            if len(self._pass) == len(self._layers):
                self._end_pass()

    def answer_ended(self, *, finished: bool) -> None:
        """See `RouteObserver`."""
        if self._ended() or not self._answering:
            return
        self._end_pass()
        self._answering = False
        self._queue.add(AnswerEnded(finished))

    def finish(self) -> None:
        """End the recording, between two answers, and wait for the disk; the trace gets its name.

        Nothing to be seen happens if it has ended already.

        Raises:
            TraceWriteError: the disk refused; what was written before is under the partial name.
        """
        self._leave()
        self._queue.finish()

    def discard(self) -> None:
        """End the recording and delete it, between two answers: nothing was answered."""
        assert not self.answers, "a recording with answers is kept"
        self._leave()
        self._queue.discard()

    def as_dict(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports; from any thread."""
        writer = self._queue.writer
        return {
            "state": self.state,
            "reason": self.reason or None,
            "file": writer.path if writer.finished else writer.partial,
            "bytes": writer.nbytes,
            "limit_bytes": writer.max_bytes,
            "answers": self.answers,
            "passes": self._passes,
        }

    def _ended(self) -> bool:
        if self.state != "recording":
            self._leave()
        return not self._observing

    def _leave(self) -> None:
        if self._observing:
            self._observing = False
            self._observers.remove(self)

    def _end_pass(self) -> None:
        if self._pass:
            ids, self._pass = self._pass, []
            self._passes += 1
            self._queue.add(ModelPass(self._prefill, ids))


def record_routes(
    engine: Engine,
    path: str,
    recorded_by: str,
    *,
    max_bytes: int | None = None,
    told: Callable[[str], object] | None = None,
) -> TraceRecorder:
    """Record every answer of `engine` into `path`, from now on until `finish`.

    Args:
        engine: between two answers.
        path: the trace to make; nothing may be there.
        recorded_by: the command.
        max_bytes: the file never becomes larger; None is no limit.
        told: called with the reason, once, if the recording ends by itself; perhaps in another thread.

    Raises:
        RoutesUnseenError: the experts are the model's own.
        TraceWriteError: there is a trace of that name, finished or not, or it cannot be written.
    """
    writer = TraceWriter(path, trace_header(engine.loaded, recorded_by), max_bytes=max_bytes)
    return TraceRecorder(engine.route_observers, writer, told)
