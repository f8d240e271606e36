"""Owns the pieces of an answer: what a parser makes of generated text, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins. Its index is the number of calls before it; its id and name come here alone."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is over.

    Attributes:
        index: that of its start.
        complete: whether the arguments are a JSON object. A call that breaks off after its start is not
            complete; what follows it comes as text.
        raw: for a call that is not complete, all of its text so far, markup included.
    """

    index: int
    complete: bool = True
    raw: str = ""


Event = TextDelta | ReasoningDelta | ToolCallStart | ToolCallArguments | ToolCallEnd


class AnswerParser(Protocol):
    """Text in, events out.

    However the text is cut into pieces, the events are the same once neighbouring deltas are joined. No text
    makes a parser raise.
    """

    def feed(self, text: str) -> list[Event]:
        """What `text` adds. Special tokens must be written out in it; an end token may be left out."""

    def finish(self) -> list[Event]:
        """What was held back: the answer is over. Called once, last."""


def joined(events: list[Event]) -> list[Event]:
    """The same events with neighbouring deltas joined and empty ones left out."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, TextDelta | ReasoningDelta):
            if not event.text:
                continue
            if type(last) is type(event):
                assert isinstance(last, TextDelta | ReasoningDelta)
                result[-1] = type(event)(last.text + event.text)
                continue
        elif isinstance(event, ToolCallArguments):
            if not event.fragment:
                continue
            if isinstance(last, ToolCallArguments) and last.index == event.index:
                result[-1] = ToolCallArguments(event.index, last.fragment + event.fragment)
                continue
        result.append(event)
    return result
