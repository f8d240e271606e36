"""Owns the input items of `/v1/responses`, and the conversation that they make for a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from mach_server.conversation_parts import ContentPart, arguments_of, text_of
from mach_server.wire_body import invalid, missing, needed, unsupported

_TEXT_PARTS = ("input_text", "output_text", "text")
_SHOWN = 80


class InputItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Any of the items that are understood: a message, a call, its output, a reasoning."""

    type: str = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None


def conversation_of(input: str | Sequence[InputItem], instructions: str | None) -> tuple[dict[str, Any], ...]:
    """The conversation for the chat template.

    Reasoning, text and calls that follow each other are one message of the assistant, as templates want it.

    Raises:
        BadRequestError: an item is of a kind that is not understood, or lacks a field.
    """
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if isinstance(input, str):
        return (*messages, {"role": "user", "content": input})
    if not input:
        raise invalid("input", "must not be empty")
    turn: dict[str, Any] | None = None
    for index, item in enumerate(input):
        path = f"input[{index}]"
        added = _assistant_part(item, path)
        if added is None:
            turn = None
            messages.append(_message(item, path))
            continue
        if turn is None or not _continues(turn, added):
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        turn["tool_calls"] = [*turn.pop("tool_calls", ()), *added.pop("tool_calls", ())]
        if not turn["tool_calls"]:
            del turn["tool_calls"]
        turn |= added
    return tuple(messages)


def _continues(turn: dict[str, Any], added: dict[str, Any]) -> bool:
    """Whether what is added may follow what the turn has: reasoning before text before calls."""
    order = ("reasoning_content", "content", "tool_calls")
    reached = max((place for place, name in enumerate(order) if turn.get(name)), default=-1)
    wanted = min(place for place, name in enumerate(order) if name in added)
    return wanted > reached or wanted == order.index("tool_calls")


def _assistant_part(item: InputItem, path: str) -> dict[str, Any] | None:
    """What an item adds to the assistant's message; None for an item that is not the assistant's."""
    if item.type == "message" and item.role == "assistant":
        return {"content": _text(item.content, f"{path}.content")}
    if item.type == "reasoning":
        pieces = item.content or item.summary or []
        if not pieces and item.encrypted_content is not None:
            raise unsupported(f"{path}.encrypted_content", "send reasoning as it came, in plain text")
        kinds = ("reasoning_text", "summary_text", "text")
        return {"reasoning_content": text_of(pieces, f"{path}.content", kinds)}
    if item.type == "function_call":
        function = {
            "name": needed(item.name, f"{path}.name"),
            "arguments": arguments_of(needed(item.arguments, f"{path}.arguments"), f"{path}.arguments"),
        }
        call_id = needed(item.call_id, f"{path}.call_id")
        return {"tool_calls": [{"id": call_id, "type": "function", "function": function}]}
    return None


def _message(item: InputItem, path: str) -> dict[str, Any]:
    """The message of an item that is not the assistant's."""
    if item.type == "function_call_output":
        output = _text(item.output, f"{path}.output")
        return {"role": "tool", "content": output, "tool_call_id": needed(item.call_id, f"{path}.call_id")}
    if item.type != "message":
        raise unsupported(f"{path}.type", f"{item.type[:_SHOWN]!r} is no item that the model can be shown")
    role = needed(item.role, f"{path}.role")
    content = _text(item.content, f"{path}.content")
    return {"role": "system" if role == "developer" else role, "content": content}


def _text(content: str | list[ContentPart] | None, path: str) -> str:
    if content is None:
        raise missing(path)
    return text_of(content, path, _TEXT_PARTS)
