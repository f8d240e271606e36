"""Owns reasoning between tags, such as `<think>…</think>`: it parts that from the rest of the answer."""

from __future__ import annotations

from enum import Enum

from mach_server.answer.events import AnswerParser, Event, ReasoningDelta
from mach_server.answer.json_scanner import SPACE
from mach_server.answer.text_window import TextWindow


class Opening(Enum):
    """How an answer begins, as the rendered prompt has it.

    REASONING: the prompt ends with the opening tag. CONTENT: the prompt has closed the reasoning, or the
    model does none. EITHER: the model writes the opening tag itself, or leaves it out.
    """

    REASONING = "reasoning"
    CONTENT = "content"
    EITHER = "either"


class ThinkTags:
    """Gives text between the tags out as reasoning, and the rest to another parser."""

    def __init__(
        self, inner: AnswerParser, *, begin: str, end: str, opening: Opening, reopens: bool = False
    ) -> None:
        """Describe the tags.

        Args:
            inner: reads what is not reasoning.
            begin: the opening tag.
            end: the closing tag.
            opening: how the answer begins.
            reopens: whether an opening tag later in the answer begins reasoning again. Without it that tag is
                text there, because people talk about tags.
        """
        self._inner, self._begin, self._end_tag, self._reopens = inner, begin, end, reopens
        self._window = TextWindow()
        self._events: list[Event] = []
        self._gap: list[str] = []
        self._reasoning = opening is Opening.REASONING
        self._undecided = opening is not Opening.CONTENT

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._reasoning

    @property
    def may_reason(self) -> bool:
        """Whether reasoning may go on or begin."""
        return self._reasoning or self._undecided or self._reopens

    def feed(self, text: str) -> list[Event]:
        """See `AnswerParser`."""
        self._window.push(text)
        while self._step():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """See `AnswerParser`."""
        self._window.ended = True
        events = self.feed("")
        return events + self._inner.finish()

    def _step(self) -> bool:
        if self._undecided:
            return self._decide()
        if self._reasoning:
            text, marker = self._window.until(self._end_tag)
            self._events.append(ReasoningDelta(text))
            self._reasoning = marker is None
            return marker is not None
        if not self._reopens:
            self._content(self._window.rest())
            return False
        text, marker = self._window.until(self._begin)
        self._content(text)
        self._reasoning = marker is not None
        return self._reasoning

    def _decide(self) -> bool:
        """Whether the answer begins with the opening tag, which some models repeat after the prompt's."""
        self._gap.append(self._window.match(SPACE))
        found = self._window.skip(self._begin)
        if found is None:
            return False
        gap = "".join(self._gap)
        if self._reasoning and not found:
            self._events.append(ReasoningDelta(gap))
        elif not found:
            self._content(gap)
        self._reasoning = self._reasoning or found
        self._undecided = False
        return True

    def _content(self, text: str) -> None:
        if text:
            self._events += self._inner.feed(text)
