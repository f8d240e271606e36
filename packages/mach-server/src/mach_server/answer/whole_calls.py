"""Owns tool calls that are given out whole or not at all.

A call that breaks off in the middle has been announced by then when calls are streamed. Where nothing has to
be given out early, this parser keeps each call until it is complete, and a broken one comes back as text.
"""

from __future__ import annotations

from dataclasses import replace

from mach_server.answer.events import (
    AnswerParser,
    Event,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)


class WholeCalls:
    """Passes events on, those of a call all at once."""

    def __init__(self, inner: AnswerParser) -> None:
        """Args: inner: whose events."""
        self._inner = inner
        self._start: ToolCallStart | None = None
        self._fragments: list[str] = []
        self._calls = 0

    def feed(self, text: str) -> list[Event]:
        """See `AnswerParser`."""
        return self._pass_on(self._inner.feed(text))

    def finish(self) -> list[Event]:
        """See `AnswerParser`."""
        events = self._pass_on(self._inner.finish())
        assert self._start is None, "every call is ended"
        return events

    def _pass_on(self, events: list[Event]) -> list[Event]:
        result: list[Event] = []
        for event in events:
            if isinstance(event, ToolCallStart):
                self._start, self._fragments = event, []
            elif isinstance(event, ToolCallArguments):
                self._fragments.append(event.fragment)
            elif isinstance(event, ToolCallEnd):
                result += self._whole(event)
            else:
                result.append(event)
        return result

    def _whole(self, end: ToolCallEnd) -> list[Event]:
        start, self._start = self._start, None
        assert start is not None, "a call begins before it ends"
        if not end.complete:
            return [TextDelta(end.raw)]
        index = self._calls
        self._calls += 1
        return [
            replace(start, index=index),
            ToolCallArguments(index, "".join(self._fragments)),
            replace(end, index=index),
        ]
