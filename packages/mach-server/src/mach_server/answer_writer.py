"""Owns the contract between an answer's life (`answer_endpoint`) and what each endpoint puts on the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mach_server.answer_reader import AnswerPart
from mach_server.answer_request import AnswerRequest
from mach_server.collected_answer import CollectedAnswer, Outcome
from mach_server.errors import ApiError


class AnswerWriter(Protocol):
    """Writes one answer in one endpoint's form: `whole`, or `begin`, `part` after part, `end`.

    What it returns are complete server-sent events, or nothing where there is nothing to say.
    """

    def begin(self, prompt_tokens: int) -> bytes:
        """The first events: the engine has taken up the request."""

    def part(self, part: AnswerPart) -> bytes:
        """The events for what a step added."""

    def end(self, outcome: Outcome) -> bytes:
        """The last events."""

    def whole(self, answer: CollectedAnswer, outcome: Outcome) -> bytes:
        """The body of an answer that is not streamed."""

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request as its endpoint understood it.

    Attributes:
        request: what to do.
        stream: whether the answer is sent while it is made.
        writer: how it is put on the wire.
        echo: called with the prompt's text before anything is written; None where nobody asks for it.
    """

    request: AnswerRequest
    stream: bool
    writer: AnswerWriter
    echo: Callable[[str], None] | None = None


def keep_alive(progress: str) -> bytes:
    """A comment: all clients of server-sent events pass over it, and none takes the connection for dead."""
    return b": " + progress.encode() + b"\n\n"
