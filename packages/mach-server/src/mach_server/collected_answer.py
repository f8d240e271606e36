"""Owns a whole answer put together from its events, as blocks in their order; knows no wire format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from mach_decode.logprobs import TokenLogprob
from mach_server.answer.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mach_server.expert_io import ExpertIO

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an answer ended and what it took.

    Attributes:
        reason: `tool_calls` when the model ended its turn with at least one whole call.
        stop: the stop string that ended it, or None.
        completion_tokens: generated, the end token included.
        reasoning_tokens: those of them whose text became reasoning.
        expert_io: what its experts cost; None where the answer ended before the engine had finished it.
    """

    reason: FinishReason
    stop: str | None
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    expert_io: ExpertIO | None = None


@dataclass(slots=True)
class Block:
    """One part of an answer.

    Attributes:
        kind: what it is.
        text: a text's or a reasoning's text, or the JSON text of a call's arguments.
        id: of a call.
        name: of a call's function.
    """

    kind: Literal["text", "reasoning", "call"]
    id: str = ""
    name: str = ""
    _pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        """Add to its text."""
        self._pieces.append(piece)


@dataclass(slots=True)
class CollectedAnswer:
    """Everything that has come.

    Attributes:
        blocks: in order; texts and reasonings are not empty.
        logprobs: of all tokens of the answer, markup and reasoning included, if they were asked for.
        prompt_logprobs: of the prompt.
    """

    blocks: list[Block] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    _calls: dict[int, Block] = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> None:
        """Take in more of the answer."""
        for event in events:
            match event:
                case TextDelta(text):
                    self._extend("text", text)
                case ReasoningDelta(text):
                    self._extend("reasoning", text)
                case ToolCallStart(index, id, name):
                    self._calls[index] = Block("call", id, name)
                    self.blocks.append(self._calls[index])
                case ToolCallArguments(index, fragment):
                    self._calls[index].add(fragment)
                case ToolCallEnd(index, complete, raw):
                    if not complete:
                        self._break_off(self._calls[index], raw)

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(block.text for block in self.blocks if block.kind == "text")

    @property
    def reasoning(self) -> str:
        """The reasoning blocks, joined."""
        return "".join(block.text for block in self.blocks if block.kind == "reasoning")

    @property
    def calls(self) -> list[Block]:
        """The calls."""
        return [block for block in self.blocks if block.kind == "call"]

    def _extend(self, kind: Literal["text", "reasoning"], text: str) -> None:
        if not text:
            return
        if not self.blocks or self.blocks[-1].kind != kind:
            self.blocks.append(Block(kind))
        self.blocks[-1].add(text)

    def _break_off(self, call: Block, raw: str) -> None:
        """What began like a call was none: it is the text that the model wrote."""
        at = next(place for place, block in enumerate(self.blocks) if block is call)
        if at and self.blocks[at - 1].kind == "text":
            self.blocks[at - 1].add(raw)
            del self.blocks[at]
        else:
            self.blocks[at] = Block("text")
            self.blocks[at].add(raw)
