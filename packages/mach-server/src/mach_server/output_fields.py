"""Owns the fields that ask for structured output: OpenAI's formats and vLLM's extensions, as one rule."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from mach_server.answer_request import OutputRule
from mach_server.errors import BadRequestError
from mach_server.wire_body import invalid, json_object, unsupported


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """vLLM's extension: one of these."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class GuidedFields(Protocol):
    """A body with vLLM's extensions, the older ones with a field each."""

    structured_outputs: StructuredOutputs | None
    guided_json: dict[str, Any] | str | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None
    response_format: dict[str, Any] | None


def output_rule(format: dict[str, Any] | None, param: str) -> OutputRule | None:
    """The rule for OpenAI's `response_format`, or for the `text.format` of `/v1/responses`, which is flatter.

    Raises:
        BadRequestError: it is none of text, json_object and json_schema, or lacks its schema.
    """
    if format is None:
        return None
    kind = format.get("type")
    if kind == "text":
        _only(format, param, "type")
        return None
    if kind == "json_object":
        _only(format, param, "type")
        return OutputRule(kind="json_object", param=param)
    if kind != "json_schema":
        raise unsupported(f"{param}.type", "allowed are 'text', 'json_object' and 'json_schema'")
    holder, path = format, param
    if "json_schema" in format:
        _only(format, param, "type", "json_schema")
        holder, path = format["json_schema"], f"{param}.json_schema"
        if not isinstance(holder, dict):
            raise BadRequestError(f"{path} must be an object", param=path, code="invalid_type")
    _only(holder, path, "type", "name", "description", "schema", "strict")
    schema = holder.get("schema")
    if not isinstance(schema, dict):
        raise BadRequestError(f"{path}.schema must be an object", param=f"{path}.schema", code="invalid_type")
    strict = holder.get("strict")
    if not isinstance(strict, bool | None):
        raise BadRequestError(f"{path}.strict must be a boolean", param=f"{path}.strict", code="invalid_type")
    # Without `strict` OpenAI makes a best effort; here the schema binds either way.
    return OutputRule(kind="json_schema", value=schema, strict=bool(strict), param=f"{path}.schema")


def guided_rule(body: GuidedFields) -> OutputRule | None:
    """The rule for vLLM's extensions.

    Raises:
        BadRequestError: there are several, or one beside a response_format.
    """
    rules: list[OutputRule] = []
    wanted = body.structured_outputs or StructuredOutputs()
    for param, json, regex, choice, grammar in (
        (
            "structured_outputs.",
            wanted.json,
            wanted.regex,
            wanted.choice,
            wanted.grammar,
        ),
        ("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar),
    ):
        if json is not None:
            rules.append(
                OutputRule(kind="json_schema", value=_schema(json, param + "json"), param=param + "json")
            )
        if regex is not None:
            rules.append(OutputRule(kind="regex", value=regex, param=param + "regex"))
        if choice is not None:
            if not choice or "" in choice:
                raise invalid(param + "choice", "must hold strings that are not empty")
            rules.append(OutputRule(kind="choice", value=tuple(choice), param=param + "choice"))
        if grammar is not None:
            rules.append(OutputRule(kind="grammar", value=grammar, param=param + "grammar"))
    if wanted.json_object:
        rules.append(OutputRule(kind="json_object", param="structured_outputs.json_object"))
    formatted = body.response_format is not None and body.response_format.get("type") != "text"
    if len(rules) + formatted > 1:
        raise invalid(rules[0].param, "stands beside another form for the output: ask for one")
    return rules[0] if rules else None


def _schema(schema: dict[str, Any] | str, param: str) -> dict[str, Any]:
    return schema if isinstance(schema, dict) else json_object(schema, param)


def _only(value: dict[str, Any], path: str, *names: str) -> None:
    for name in value:
        if name not in names:
            param = f"{path}.{name[:80]}"
            raise BadRequestError(f"{param} is not a known field", param=param, code="unknown_parameter")
