"""Owns the white space around what is not text.

Markup stands on lines of its own, and those line ends are no part of an answer. White space is left out after
reasoning, around tool calls, and at both ends of reasoning. An answer that is text alone stays as it is.
"""

from __future__ import annotations

from mach_server.answer.events import (
    AnswerParser,
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallEnd,
    ToolCallStart,
)


class Trimmed:
    """Passes events on, white space at the seams left out."""

    def __init__(self, inner: AnswerParser) -> None:
        """Args: inner: whose events."""
        self._inner = inner
        self._held = ""
        self._at_seam = False
        self._reasoning = False

    def feed(self, text: str) -> list[Event]:
        """See `AnswerParser`."""
        return self._pass_on(self._inner.feed(text))

    def finish(self) -> list[Event]:
        """See `AnswerParser`."""
        events = self._pass_on(self._inner.finish())
        if self._held and not self._reasoning and not self._at_seam:
            events.append(TextDelta(self._held))
        return events

    def _pass_on(self, events: list[Event]) -> list[Event]:
        result: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                if event.text:
                    self._trim(event, result)
                continue
            if isinstance(event, ToolCallStart):
                self._seam(reasoning=False)
            result.append(event)
            if isinstance(event, ToolCallEnd):
                # What follows a broken call belongs to its text.
                self._at_seam = event.complete
        return result

    def _seam(self, *, reasoning: bool) -> None:
        self._held, self._at_seam, self._reasoning = "", True, reasoning

    def _trim(self, event: TextDelta | ReasoningDelta, result: list[Event]) -> None:
        kind = type(event)
        reasoning = kind is ReasoningDelta
        if reasoning != self._reasoning:
            self._seam(reasoning=reasoning)
        text = event.text.lstrip() if self._at_seam else event.text
        if not text:
            return
        self._at_seam = False
        kept = text.rstrip()
        if kept:
            result.append(kind(self._held + kept))
            self._held = text[len(kept) :]
        else:
            self._held += text
