"""Owns the pieces of conversations that endpoints share: content parts, calls, tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import msgspec

from mach_server.answer_request import FunctionTool, ToolMode, ToolRules
from mach_server.wire_body import invalid, json_object, needed, unsupported

NAME_LENGTH = 128
"""Characters of a function's name."""

_NAME_SHOWN = 80
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{NAME_LENGTH}}}")


class ContentPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A piece of a message's content; what is not text is refused by `text_of`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    image_url: Any = None
    detail: Any = None
    input_audio: Any = None
    file: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None


def text_of(content: str | list[ContentPart], path: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """A content's text: its parts joined by newlines, as vLLM joins them.

    Args:
        content: a message's.
        path: where it stands, for errors.
        kinds: the types of parts that are text here.

    Raises:
        BadRequestError: a part is an image, a sound, a file or unknown, or has no text.
    """
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        place = f"{path}[{index}]"
        if part.type == "refusal" and part.refusal is not None:
            texts.append(part.refusal)
            continue
        if part.type not in kinds:
            raise unsupported(
                f"{place}.type", f"{part.type[:80]!r} is not text, which is all the model reads"
            )
        texts.append(needed(part.text, f"{place}.text"))
    return "\n".join(texts)


def arguments_of(arguments: str, path: str) -> dict[str, Any]:
    """A call's arguments as chat templates want them: an object, not its JSON text.

    Raises:
        BadRequestError: they are not the JSON of an object.
    """
    return json_object(arguments.strip() or "{}", path)


def one_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the system's first ones joined: some templates allow but one, and that at the top."""
    leading = list(takewhile(lambda message: message["role"] == "system" and len(message) == 2, messages))
    if len(leading) < 2:
        return list(messages)
    text = "\n\n".join(message["content"] for message in leading)
    return [{"role": "system", "content": text}, *messages[len(leading) :]]


def check_tools(tools: tuple[FunctionTool, ...], most: int) -> None:
    """Refuse tools that cannot be told apart or are too many.

    Args:
        tools: each with the fields that hold it.
        most: how many there may be.

    Raises:
        BadRequestError: naming the field.
    """
    if len(tools) > most:
        raise invalid("tools", f"holds {len(tools)} functions, but {most} are allowed")
    names: set[str] = set()
    for tool in tools:
        field = f"{tool.param}.{tool.name_field}"
        if not _NAME.fullmatch(tool.name):
            raise invalid(field, f"must be 1 to {NAME_LENGTH} letters, digits, _, - or .")
        if tool.name in names:
            raise invalid(field, f"{tool.name!r} is the name of another tool too")
        names.add(tool.name)


def tool_rules(
    tools: tuple[FunctionTool, ...],
    mode: ToolMode,
    *,
    name: str | None = None,
    parallel: bool,
    most: int,
    required: str = "required",
) -> ToolRules:
    """What a request's tools and its `tool_choice` ask for.

    Args:
        tools: each with the fields that hold it.
        mode: how the model must use them.
        name: the function that a `named` call must be to.
        parallel: whether one answer may hold several calls.
        most: how many tools there may be.
        required: the endpoint's word for the mode `required`, for errors.

    Raises:
        BadRequestError: naming the field.
    """
    check_tools(tools, most)
    if mode == "named" and name not in {tool.name for tool in tools}:
        raise invalid("tool_choice", f"names {str(name)[:_NAME_SHOWN]!r}, which is none of the tools")
    if mode == "required" and not tools:
        raise invalid("tool_choice", f"is {required}, but there are no tools")
    return ToolRules(tools=tools, mode=mode, name=name, parallel=parallel)
