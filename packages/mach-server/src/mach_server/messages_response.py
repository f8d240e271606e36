"""Owns the bodies and stream events of Anthropic's `/v1/messages`; knows neither the engine nor HTTP."""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec

from mach_server.answer.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mach_server.answer_reader import AnswerPart
from mach_server.collected_answer import Block, CollectedAnswer, Outcome
from mach_server.errors import ApiError, anthropic_body
from mach_server.event_stream import named_event
from mach_server.expert_io import ExpertIO

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

SIGNATURE = ""
"""Thinking is not signed: whoever sends it back is believed."""


class OutputDetails(msgspec.Struct, kw_only=True):
    """Tokens whose text became reasoning."""

    thinking_tokens: int = 0


class MessagesUsage(msgspec.Struct, kw_only=True):
    """Token counts; no prompt token is taken from a cache, or kept in one, yet.

    An extension at the answer's end: the bill for the experts.
    """

    input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails = msgspec.field(default_factory=OutputDetails)
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    expert_io: ExpertIO | None | msgspec.UnsetType = msgspec.UNSET


class MessageObject(msgspec.Struct, kw_only=True):
    """The whole answer."""

    id: str
    model: str
    content: list[dict[str, Any]]
    usage: MessagesUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class MessagesWriter:
    """Writes one answer, whole or in events."""

    def __init__(self, model: str) -> None:
        """Args: model: its id."""
        self._id, self._model = f"msg_{secrets.token_hex(12)}", model
        self._index = 0
        self._open: str | None = None

    def whole(self, answer: CollectedAnswer, outcome: Outcome) -> bytes:
        """The body of an answer that was not streamed."""
        content = [_whole_block(block) for block in answer.blocks]
        return msgspec.json.encode(
            MessageObject(
                id=self._id,
                model=self._model,
                content=content,
                usage=_usage(outcome),
                stop_reason=_stop_reason(outcome),
                stop_sequence=outcome.stop,
            )
        )

    def begin(self, prompt_tokens: int) -> bytes:
        """The message as it begins."""
        usage = MessagesUsage(input_tokens=prompt_tokens, output_tokens=0)
        message = MessageObject(id=self._id, model=self._model, content=[], usage=usage)
        return _event("message_start", message=message) + _event("ping")

    def part(self, part: AnswerPart) -> bytes:
        """The events for what has come."""
        return b"".join(self._on(event) for event in part.events)

    def end(self, outcome: Outcome) -> bytes:
        """The end of the open block, the reason and the usage, and the end."""
        delta = {"stop_reason": _stop_reason(outcome), "stop_sequence": outcome.stop}
        usage = _usage(outcome)
        return self._close() + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def failed(self, error: ApiError) -> bytes:
        """The error event."""
        return named_event("error", anthropic_body(error))

    def _on(self, event: Event) -> bytes:
        match event:
            case TextDelta(text):
                opened = self._ensure("text", {"type": "text", "text": ""})
                return opened + self._delta({"type": "text_delta", "text": text})
            case ReasoningDelta(text):
                thinking = {"type": "thinking", "thinking": "", "signature": SIGNATURE}
                opened = self._ensure("thinking", thinking)
                return opened + self._delta({"type": "thinking_delta", "thinking": text})
            case ToolCallStart(_, id, name):
                block: dict[str, Any] = {"type": "tool_use", "id": id, "name": name, "input": {}}
                return self._close() + self._begin("tool_use", block)
            case ToolCallArguments(_, fragment):
                return self._delta({"type": "input_json_delta", "partial_json": fragment})
            case ToolCallEnd():
                return self._close()
        return b""

    def _ensure(self, kind: str, block: dict[str, Any]) -> bytes:
        """Begin a block of this kind, unless one is open."""
        return b"" if self._open == kind else self._close() + self._begin(kind, block)

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        self._open = kind
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        """End the open block, if there is one."""
        if self._open is None:
            return b""
        self._open = None
        self._index += 1
        return _event("content_block_stop", index=self._index - 1)


def _whole_block(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": SIGNATURE}
    arguments = msgspec.Raw(block.text.encode() or b"{}")
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": arguments}


def _stop_reason(outcome: Outcome) -> StopReason:
    if outcome.reason == "length":
        return "max_tokens"
    if outcome.reason == "tool_calls":
        return "tool_use"
    return "end_turn" if outcome.stop is None else "stop_sequence"


def _usage(outcome: Outcome) -> MessagesUsage:
    return MessagesUsage(
        input_tokens=outcome.prompt_tokens,
        output_tokens=outcome.completion_tokens,
        output_tokens_details=OutputDetails(thinking_tokens=outcome.reasoning_tokens),
        expert_io=outcome.expert_io,
    )


def _event(name: str, **fields: Any) -> bytes:
    return named_event(name, msgspec.json.encode({"type": name, **fields}))
