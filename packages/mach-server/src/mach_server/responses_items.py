"""Owns what an answer of `/v1/responses` consists of: reasoning, message and call items, usage, the whole."""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec

from mach_server.collected_answer import Block, Outcome
from mach_server.expert_io import ExpertIO
from mach_server.token_logprobs import TokenEntry

Status = Literal["in_progress", "completed", "incomplete"]


class ReasoningPart(msgspec.Struct, kw_only=True):
    """The text of a reasoning."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class TextPart(msgspec.Struct, kw_only=True):
    """The text of a message."""

    text: str
    logprobs: list[TokenEntry]
    annotations: list[Any] = msgspec.field(default_factory=list)
    type: Literal["output_text"] = "output_text"


class ReasoningItem(msgspec.Struct, kw_only=True):
    """What the model thought; always in plain text."""

    id: str
    content: list[ReasoningPart]
    status: Status
    summary: list[Any] = msgspec.field(default_factory=list)
    encrypted_content: None = None
    type: Literal["reasoning"] = "reasoning"


class MessageItem(msgspec.Struct, kw_only=True):
    """What the model said."""

    id: str
    content: list[TextPart]
    status: Status
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class CallItem(msgspec.Struct, kw_only=True):
    """A call of a function; `arguments` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status
    type: Literal["function_call"] = "function_call"


Item = ReasoningItem | MessageItem | CallItem


class InputDetails(msgspec.Struct, kw_only=True):
    """No prompt token is taken from a cache, or kept in one, yet."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, kw_only=True):
    """Tokens whose text became reasoning."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Token counts, of which the end token is one, and an extension: the bill for the experts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    expert_io: ExpertIO | None

    @classmethod
    def of(cls, outcome: Outcome) -> ResponseUsage:
        """The usage of one answer."""
        return cls(
            input_tokens=outcome.prompt_tokens,
            input_tokens_details=InputDetails(),
            output_tokens=outcome.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=outcome.reasoning_tokens),
            total_tokens=outcome.prompt_tokens + outcome.completion_tokens,
            expert_io=outcome.expert_io,
        )


class IncompleteDetails(msgspec.Struct, kw_only=True):
    """Why an answer has no proper end."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(msgspec.Struct, kw_only=True):
    """The whole answer, with what was asked for."""

    id: str
    created_at: int
    status: Status
    model: str
    output: list[Item]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    usage: ResponseUsage | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: int | None = None
    error: None = None
    background: bool = False
    previous_response_id: None = None
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
    object: Literal["response"] = "response"


def item_of(block: Block, id: str, status: Status, logprobs: list[TokenEntry] | None = None) -> Item:
    """The item for a part of an answer."""
    if block.kind == "reasoning":
        return ReasoningItem(id=id, content=[ReasoningPart(text=block.text)], status=status)
    if block.kind == "text":
        part = TextPart(text=block.text, logprobs=logprobs or [])
        return MessageItem(id=id, content=[part], status=status)
    return CallItem(id=id, call_id=block.id, name=block.name, arguments=block.text, status=status)


def new_id(kind: str) -> str:
    """An id for a new item. Args: kind: `text`, `reasoning`, `call` or `response`."""
    prefix = {"text": "msg", "reasoning": "rs", "call": "fc", "response": "resp"}[kind]
    return f"{prefix}_{secrets.token_hex(16)}"
