"""Owns the content blocks of Anthropic's messages, and the conversation they make for a chat template."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mach_server.wire_body import invalid, needed, unsupported

_SHOWN = 80


class ContentBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Any block; the kinds that are not understood are refused by their type.

    `cache_control` is a hint for a cache, and changes no answer.
    """

    type: str
    text: str | None = None
    citations: Any = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    caller: Any = None
    tool_use_id: str | None = None
    content: str | list[ContentBlock] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: Any = None
    source: Any = None
    title: Any = None
    context: Any = None
    cache_control: Any = None


def system_text(system: str | list[ContentBlock]) -> str:
    """The system prompt, its blocks joined by newlines; raises BadRequestError."""
    return system if isinstance(system, str) else _joined(system, "system")


def messages_of(
    role: Literal["user", "assistant"], content: str | list[ContentBlock], path: str
) -> list[dict[str, Any]]:
    """The template's messages for one of Anthropic's: results of tools are messages of their own.

    Args:
        role: whose message it is.
        content: its text or blocks.
        path: where the content stands, for errors.

    Raises:
        BadRequestError: a block is of a kind that is not understood here, or lacks a field.
    """
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not content:
        raise invalid(path, "must not be empty")
    return _assistant(content, path) if role == "assistant" else _user(content, path)


def _user(blocks: list[ContentBlock], path: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        place = f"{path}[{index}]"
        if block.type != "tool_result":
            texts.append(_text(block, place))
            continue
        if texts:
            messages.append({"role": "user", "content": "\n".join(texts)})
            texts = []
        result = block.content or ""
        text = result if isinstance(result, str) else _joined(result, f"{place}.content")
        # Templates have no word for it, and the model must be told.
        text = f"Error: {text}" if block.is_error else text
        call_id = needed(block.tool_use_id, f"{place}.tool_use_id")
        messages.append({"role": "tool", "content": text, "tool_call_id": call_id})
    if texts:
        messages.append({"role": "user", "content": "\n".join(texts)})
    return messages


def _assistant(blocks: list[ContentBlock], path: str) -> list[dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        place = f"{path}[{index}]"
        if block.type == "thinking":
            thoughts.append(needed(block.thinking, f"{place}.thinking"))
        elif block.type == "tool_use":
            function = {
                "name": needed(block.name, f"{place}.name"),
                "arguments": needed(block.input, f"{place}.input"),
            }
            call_id = needed(block.id, f"{place}.id")
            calls.append({"id": call_id, "type": "function", "function": function})
        else:
            texts.append(_text(block, place))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _joined(blocks: list[ContentBlock], path: str) -> str:
    return "\n".join(_text(block, f"{path}[{index}]") for index, block in enumerate(blocks))


def _text(block: ContentBlock, place: str) -> str:
    if block.type != "text":
        raise unsupported(f"{place}.type", f"{block.type[:_SHOWN]!r} cannot stand here")
    return needed(block.text, f"{place}.text")
