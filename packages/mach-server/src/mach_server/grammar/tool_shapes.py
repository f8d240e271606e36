"""Owns the shapes of tool calls in each wire format; `mach_server.answer` reads what they allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mach_server.answer.parameters import types_of
from mach_server.grammar.answer_forms import Tool, ToolCallForm
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.json_schema import canonical, normalised
from mach_server.grammar.shapes import (
    Json,
    OneOf,
    Repeated,
    Sequence,
    Shape,
    Text,
    Triggered,
    Until,
    optional,
)

_NAME = re.compile(r"[\w.:/-]{1,128}")
_KEY = re.compile(r"[\w.$-]{1,128}")
_MAX_PARAMETERS = 64
_ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": {}}
_LEAD = Repeated(Text("\n"), 0, 2)


def tool_calls(form: ToolCallForm, dialect: str | None, limits: GrammarLimits) -> Shape:
    """Calls in a dialect.

    Raises:
        GrammarRefusedError: a strict schema cannot be enforced, or the model knows no tools.
    """
    if dialect is None:
        raise GrammarRefusedError("this model's chat template knows no tools", param=form.param)
    if not 0 < len(form.tools) <= limits.tools:
        raise GrammarRefusedError(f"1 to {limits.tools} tools are allowed", param=form.param)
    for index, tool in enumerate(form.tools):
        if not _NAME.fullmatch(tool.name):
            raise GrammarRefusedError(
                f"{tool.name[:100]!r} cannot be a function's name: letters, digits and _ . : / - are allowed",
                param=f"{form.param}[{index}].function.name",
            )
    schemas = [
        _schema(tool, f"{form.param}[{index}].function.parameters", dialect, limits)
        for index, tool in enumerate(form.tools)
    ]
    calls = OneOf(
        tuple(_CALLS[dialect](tool.name, schema) for tool, schema in zip(form.tools, schemas, strict=True))
    )
    return _DIALECTS[dialect](calls, form.choice == "required", form.parallel)


def _schema(tool: Tool, param: str, dialect: str, limits: GrammarLimits) -> dict[str, Any]:
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    try:
        schema = normalised(tool.parameters, param=param, limits=limits, closed=True)
        if schema.get("type", "object") != "object":
            raise GrammarRefusedError(
                "schema: the keyword 'type' must be object for a function's parameters",
                param=param,
                keyword="type",
            )
        if dialect in _BY_PARAMETER:
            _check_parameters(schema, param)
        return {"type": "object", **schema}
    except GrammarRefusedError:
        if tool.strict:
            raise
        properties = tool.parameters.get("properties")
        if dialect in _BY_PARAMETER and isinstance(properties, Mapping):
            return {"type": "object", "properties": {name: {} for name in properties if _KEY.fullmatch(name)}}
        return _ANY_OBJECT


def _check_parameters(schema: Mapping[str, Any], param: str) -> None:
    """Formats that give each parameter by itself enforce their names, order and types; no more than that."""
    for word in schema:
        if word not in ("type", "properties", "required", "additionalProperties", "$defs", "definitions"):
            raise GrammarRefusedError(
                f"schema: the keyword {word!r} is not supported at the top of this model's tool parameters",
                param=param,
                keyword=word,
            )
    if schema.get("additionalProperties", False) is not False:
        raise GrammarRefusedError(
            "schema: the keyword 'additionalProperties' must be false for this model's tool parameters",
            param=param,
            keyword="additionalProperties",
        )
    properties = schema.get("properties", {})
    if len(properties) > _MAX_PARAMETERS or not all(map(_KEY.fullmatch, properties)):
        raise GrammarRefusedError(
            f"schema: the keyword 'properties' must hold at most {_MAX_PARAMETERS} names of letters, digits "
            "and _ . $ - for this model",
            param=param,
            keyword="properties",
        )
    for name, described in properties.items():
        words = set(described) & {"minLength", "maxLength", "pattern", "format"}
        if "string" in types_of(schema, name) and words:
            word = min(words)
            raise GrammarRefusedError(
                f"schema.properties.{name}: {word!r} is not supported in this model's tool parameters",
                param=param,
                keyword=word,
            )


def _hermes_call(name: str, schema: Mapping[str, Any]) -> Shape:
    begin = f'\n{{"name": {canonical_name(name)}, "arguments": '
    return Sequence((Text(begin), Json(canonical(schema)), Text("}\n</tool_call>")))


def canonical_name(name: str) -> str:
    """A name as JSON."""
    return canonical({name: 0})[1:-3]


def _coder_call(name: str, schema: Mapping[str, Any]) -> Shape:
    parts = _parameters(schema, lambda key, text: (f"<parameter={key}>\n", "\n</parameter>\n"))
    return Sequence((Text(f"\n<function={name}>\n"), *parts, Text("</function>\n</tool_call>")))


def _dsml_call(name: str, schema: Mapping[str, Any]) -> Shape:
    def tags(key: str, text: bool) -> tuple[str, str]:
        kind = "true" if text else "false"
        return f'<｜DSML｜parameter name="{key}" string="{kind}">', "</｜DSML｜parameter>\n"

    parts = _parameters(schema, tags)
    return Sequence((Text(f'<｜DSML｜invoke name="{name}">\n'), *parts, Text("</｜DSML｜invoke>\n")))


def _parameters(schema: Mapping[str, Any], tags: Callable[[str, bool], tuple[str, str]]) -> list[Shape]:
    """Each parameter between its tags, in the schema's order; optional ones may be left out."""
    required = schema.get("required", [])
    shapes = []
    for key, described in schema.get("properties", {}).items():
        text = "string" in types_of(schema, key)
        begin, end = tags(key, text)
        values = _fixed_texts(described)
        value: tuple[Shape, ...]
        if values:
            value = (OneOf(tuple(Text(option) for option in values)), Text(end))
        elif text:
            value = (Until(end),)
        else:
            value = (Json(_with_definitions(described, schema)), Text(end))
        shape = Sequence((Text(begin), *value))
        shapes.append(shape if key in required else optional(shape))
    return shapes


def _fixed_texts(described: Mapping[str, Any]) -> list[str]:
    """The values of a choice of strings; empty for anything else."""
    values = described.get("enum", [described["const"]] if "const" in described else [])
    return values if all(isinstance(value, str) for value in values) else []


def _with_definitions(described: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    definitions = {word: root[word] for word in ("$defs", "definitions") if word in root}
    return canonical({**described, **definitions})


_QUOTE = '<|"|>'
_GEMMA_TEXT = Sequence((Text(_QUOTE), Until(_QUOTE)))
_GEMMA_ANY = OneOf((_GEMMA_TEXT, Json(canonical({"type": ["number", "boolean", "null"]}))))


def _gemma_call(name: str, schema: Mapping[str, Any]) -> Shape:
    return Sequence((Text(f"call:{name}"), _gemma_object(schema), Text("<tool_call|>")))


def _gemma_object(schema: Mapping[str, Any]) -> Shape:
    """Members in the order of their names, as the chat template writes them."""
    required = schema.get("required", [])
    members: list[tuple[bool, Shape]] = [
        (key in required, Sequence((Text(f"{key}:"), _gemma_value(described))))
        for key, described in sorted(schema.get("properties", {}).items())
    ]
    return Sequence((Text("{"), _listed(members), Text("}")))


def _listed(members: list[tuple[bool, Shape]]) -> Shape:
    """Members with commas between those that are there."""
    following: Shape = Text("")
    first: Shape = Text("")
    for needed, member in reversed(members):
        with_comma = Sequence((Text(","), member))
        begun = Sequence((member, following))
        first = begun if needed else OneOf((begun, first))
        following = Sequence((with_comma if needed else optional(with_comma), following))
    return first


def _gemma_value(described: Mapping[str, Any]) -> Shape:
    values = _fixed_texts(described)
    if values:
        return OneOf(tuple(Text(f"{_QUOTE}{value}{_QUOTE}") for value in values))
    match described.get("type"):
        case "string":
            return _GEMMA_TEXT
        case "integer" | "number" | "boolean" | "null":
            return Json(canonical(described))
        case "object" if "properties" in described:
            return _gemma_object(described)
        case "array":
            items = described.get("items", {})
            item = _gemma_value(items) if isinstance(items, Mapping) else _GEMMA_ANY
            more = Repeated(Sequence((Text(","), item)), 0, None)
            return Sequence((Text("["), optional(Sequence((item, more))), Text("]")))
    return _GEMMA_ANY


def _harmony_call(name: str, schema: Mapping[str, Any]) -> Shape:
    return Sequence((Text(f"{name} <|constrain|>json<|message|>"), Json(canonical(schema))))


def _blocks(trigger: str) -> Callable[[Shape, bool, bool], Shape]:
    """Calls that each begin with `trigger`."""

    def shape(calls: Shape, required: bool, parallel: bool) -> Shape:
        if not required:
            return Triggered(trigger, calls, again=parallel)
        more = Repeated(Sequence((_LEAD, Text(trigger), calls)), 0, None if parallel else 0)
        first = Sequence((Text(trigger), calls))
        return Sequence((first, more)) if parallel else first

    return shape


def _dsml_block(calls: Shape, required: bool, parallel: bool) -> Shape:
    trigger = "<｜DSML｜tool_calls>"
    block = Sequence((Text("\n"), Repeated(calls, 1, None if parallel else 1), Text("</｜DSML｜tool_calls>")))
    return Sequence((_LEAD, Text(trigger), block)) if required else Triggered(trigger, block, again=False)


def _harmony_message(calls: Shape, required: bool, parallel: bool) -> Shape:
    """One call ends a turn in this format, whatever `parallel` says."""
    trigger = "<|channel|>commentary to=functions."
    return Sequence((Text(trigger), calls)) if required else Triggered(trigger, calls, again=False)


_CALLS: dict[str, Callable[[str, Mapping[str, Any]], Shape]] = {
    "hermes": _hermes_call,
    "qwen3_coder": _coder_call,
    "dsml": _dsml_call,
    "gemma4": _gemma_call,
    "harmony": _harmony_call,
}
_DIALECTS: dict[str, Callable[[Shape, bool, bool], Shape]] = {
    "hermes": _blocks("<tool_call>"),
    "qwen3_coder": _blocks("<tool_call>"),
    "gemma4": _blocks("<|tool_call>"),
    "dsml": _dsml_block,
    "harmony": _harmony_message,
}
_BY_PARAMETER = frozenset({"qwen3_coder", "dsml", "gemma4"})
