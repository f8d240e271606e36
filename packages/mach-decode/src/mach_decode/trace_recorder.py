"""Owns a running recording: what an engine tells of its routes becomes a trace, and no answer is harmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from mach_decode.engine import Engine
from mach_decode.route_observer import RouteObservers
from mach_decode.trace_run import trace_header
from mach_store.errors import TraceWriteError
from mach_store.routed_pass import RoutedPass
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, Event, Ids, ModelPass
from mach_store.trace.trace_writer import TraceWriter

RecordingState = Literal["recording", "finished", "limit", "error"]


class TraceRecorder:
    """A `RouteObserver` that writes a trace. It leaves the engine by itself when it can write no more.

    Attributes:
        state: `recording`; `finished` by `finish`; `limit` and `error` by themselves.
        reason: why it ended by itself, for people.
        answers: that began.
    """

    def __init__(
        self, observers: RouteObservers, writer: TraceWriter, told: Callable[[str], object] | None = None
    ) -> None:
        """Record from now on.

        Args:
            observers: the engine's, between two answers.
            writer: of the trace, with nothing in it.
            told: called with `reason`, once, if the recording ends by itself.

        Raises:
            RoutesUnseenError: the experts are the model's own.
        """
        self.state: RecordingState = "recording"
        self.reason = ""
        self._observers, self._writer, self._told = observers, writer, told
        self._layers = {layer: at for at, layer in enumerate(writer.header.layers)}
        self._prefill, self._pass = True, list[Ids]()
        self.answers = self._passes = 0
        self._answering = False
        observers.add(self)

    def answer_began(self, prompt_tokens: int) -> None:
        """See `RouteObserver`."""
        self._answering = True
        self.answers += 1
        self._add(AnswerBegan(prompt_tokens))

    def routed(self, passes: Sequence[RoutedPass], *, prefill: bool) -> None:
        """See `RouteObserver`."""
        if not self._answering:
            return  # of an answer whose beginning was not seen
        for layer, ids in passes:
            at = self._layers[layer]
            new_pass = at == 0 or prefill != self._prefill
            if new_pass:
                self._end_pass()
            if at != len(self._pass) or (self._pass and len(ids) != len(self._pass[0])):
                self._end("error", f"layer {layer} was computed out of turn", writable=True)
                return
            self._prefill = prefill
            self._pass.append(ids)
            if len(self._pass) == len(self._layers):
                self._end_pass()

    def answer_ended(self, *, finished: bool) -> None:
        """See `RouteObserver`."""
        if not self._answering:
            return
        self._end_pass()
        self._answering = False
        self._add(AnswerEnded(finished))

    def finish(self) -> None:
        """End the recording, between two answers; the trace gets its name. Nothing if it has ended already.

        Raises:
            TraceWriteError: the disk refused; what was written before is under the partial name.
        """
        if self.state != "recording":
            return
        self.state = "finished"
        self._observers.remove(self)
        try:
            self._writer.finish()
        except TraceWriteError as error:
            self.state, self.reason = "error", str(error)
            self._writer.abandon()
            raise
        if self._writer.full:
            self.state, self.reason = "limit", self._full()

    def discard(self) -> None:
        """End the recording and delete it, between two answers: nothing was answered."""
        assert self.state == "recording" and not self.answers, "a recording with answers is kept"
        self._observers.remove(self)
        self._writer.discard()

    def as_dict(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports."""
        writer = self._writer
        return {
            "state": self.state,
            "reason": self.reason or None,
            "file": writer.path if writer.finished else writer.partial,
            "bytes": writer.nbytes,
            "limit_bytes": writer.max_bytes,
            "answers": self.answers,
            "passes": self._passes,
        }

    def _full(self) -> str:
        return f"the trace has its {self._writer.max_bytes} bytes"

    def _end_pass(self) -> None:
        if self._pass:
            ids, self._pass = self._pass, []
            self._passes += 1
            self._add(ModelPass(self._prefill, ids))

    def _add(self, event: Event) -> None:
        if self.state != "recording":
            return
        try:
            self._writer.add(event)
            if self._writer.full:
                self._end("limit", self._full(), writable=True)
        except TraceWriteError as error:
            self._end("error", str(error), writable=False)

    def _end(self, state: Literal["limit", "error"], reason: str, *, writable: bool) -> None:
        self.state, self.reason = state, reason
        self._observers.remove(self)
        try:
            if writable:
                self._writer.finish(state)
            else:
                self._writer.abandon()
        except TraceWriteError as error:
            self.state, self.reason = "error", str(error)
            self._writer.abandon()
        if self._told is not None:
            self._told(self.reason)


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
        told: called with the reason, once, if the recording ends by itself.

    Raises:
        RoutesUnseenError: the experts are the model's own.
        TraceWriteError: there is a trace of that name, finished or not, or it cannot be written.
    """
    writer = TraceWriter(path, trace_header(engine.loaded, recorded_by), max_bytes=max_bytes)
    return TraceRecorder(engine.route_observers, writer, told)
