"""Owns what part of JSON Schema is enforced, by keyword: it refuses the rest by name, and ignores nothing.

What comes out is the same schema without annotations. The keywords are those that llguidance enforces exactly
(`tests/grammar` compares each with cases on both sides); `fits_xgrammar` says which schemas xgrammar enforces
exactly too, because that library passes over what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.grammar_limits import GrammarLimits

_ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly $comment $schema $id "
    "discriminator contentMediaType contentEncoding".split()
)
"""Keywords that allow and forbid nothing."""

_BY_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset(
        "properties required additionalProperties patternProperties minProperties maxProperties".split()
    ),
    "array": frozenset("items prefixItems minItems maxItems".split()),
    "string": frozenset("minLength maxLength pattern format".split()),
    "number": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()),
    "integer": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()),
    "boolean": frozenset(),
    "null": frozenset(),
}
_OF_TYPES = frozenset().union(*_BY_TYPE.values())
_ANY_TYPE = frozenset("type enum const anyOf oneOf allOf $ref $defs definitions".split())
FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uuid uri".split())
"""Formats that are enforced."""

_COUNTS = frozenset("minLength maxLength minItems maxItems minProperties maxProperties".split())
_BOUNDS = frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split())
_MAX_COUNT = 1_000_000
_MAX_BOUND = 10**15


def normalised(
    schema: Any, *, param: str, limits: GrammarLimits, closed: bool, inner: str = "schema"
) -> dict[str, Any]:
    """The schema, checked, without annotations.

    Args:
        schema: as the request has it.
        param: the request's field, for messages.
        limits: of size and depth.
        closed: whether objects that name their properties have no others unless they say so. It only narrows
            what is allowed, and is what `strict` means to OpenAI's clients.
        inner: how messages call the schema's root.

    Raises:
        GrammarRefusedError: a keyword cannot be enforced or has a value of the wrong kind; it is named.
    """
    return _Normaliser(param, limits, closed).run(schema, inner)


def canonical(schema: Mapping[str, Any]) -> str:
    """A schema as text: the same for equal schemas. Properties keep their order, which the answer follows."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


class _Normaliser:
    def __init__(self, param: str, limits: GrammarLimits, closed: bool) -> None:
        self._param, self._limits, self._closed = param, limits, closed
        self._root: Mapping[str, Any] = {}

    def run(self, schema: Any, inner: str) -> dict[str, Any]:
        if not isinstance(schema, Mapping):
            raise self._refused(inner, None, "must be an object")
        self._check_depth(schema, inner)
        size = len(canonical(schema).encode(errors="replace"))
        if size > self._limits.schema_bytes:
            raise self._refused(inner, None, f"has {size} bytes, but {self._limits.schema_bytes} are allowed")
        self._root = schema
        return self._schema(schema, inner, closed=self._closed)

    def _check_depth(self, schema: Any, where: str) -> None:
        level = [schema]
        for _ in range(self._limits.schema_depth):
            level = [
                inner
                for value in level
                for inner in (value.values() if isinstance(value, Mapping) else value)
                if isinstance(inner, Mapping | list)
            ]
            if not level:
                return
        raise self._refused(where, None, f"is nested more than {self._limits.schema_depth} deep")

    def _refused(self, where: str, keyword: str | None, why: str) -> GrammarRefusedError:
        name = where if keyword is None else f"{where}: the keyword {keyword!r}"
        return GrammarRefusedError(f"{name} {why}", param=self._param, keyword=keyword)

    def _schema(self, schema: Any, where: str, *, closed: bool) -> dict[str, Any]:
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise self._refused(where, None, "must be a schema that allows something")
        types = self._types(schema, where)
        result: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _ANNOTATIONS or keyword.startswith("x-"):
                continue
            if keyword not in _ANY_TYPE and keyword not in _OF_TYPES:
                raise self._refused(where, keyword, "is not supported")
            if keyword in _OF_TYPES and types and not any(keyword in _BY_TYPE[name] for name in types):
                continue  # it says nothing about values of these types
            if keyword == "oneOf" and "anyOf" in schema:
                raise self._refused(where, keyword, "is not supported beside anyOf")
            new_keyword, new_value = self._keyword(keyword, value, f"{where}.{keyword}", where, closed)
            result[new_keyword] = new_value
        combined = any(word in schema for word in ("anyOf", "oneOf", "allOf", "$ref"))
        if closed and "properties" in result and not combined:
            result.setdefault("additionalProperties", False)
        return result

    def _types(self, schema: Mapping[str, Any], where: str) -> list[str]:
        named = schema.get("type", [])
        types = [named] if isinstance(named, str) else named
        if not isinstance(types, list) or any(
            name not in _BY_TYPE for name in types if isinstance(name, str)
        ):
            raise self._refused(where, "type", f"must be one of {', '.join(_BY_TYPE)}, or a list of them")
        if not all(isinstance(name, str) for name in types):
            raise self._refused(where, "type", "must hold names of types")
        return types

    def _keyword(self, keyword: str, value: Any, inner: str, where: str, closed: bool) -> tuple[str, Any]:
        match keyword:
            case "properties" | "patternProperties" | "$defs" | "definitions":
                if not isinstance(value, Mapping):
                    raise self._refused(where, keyword, "must be an object")
                return keyword, {k: self._schema(v, f"{inner}.{k}", closed=closed) for k, v in value.items()}
            case "additionalProperties" | "items":
                if value is False:
                    return keyword, False
                if keyword == "items" and isinstance(value, list):
                    raise self._refused(
                        where, keyword, "must be a schema; use prefixItems for a list of them"
                    )
                return keyword, self._schema(value, inner, closed=closed)
            case "anyOf" | "oneOf" | "allOf" | "prefixItems":
                if not isinstance(value, list) or not value:
                    raise self._refused(where, keyword, "must be a list of schemas that is not empty")
                # What is closed in one part of allOf would shut out the other parts' properties.
                deeper = closed and keyword != "allOf"
                options = [self._schema(v, f"{inner}[{i}]", closed=deeper) for i, v in enumerate(value)]
                if keyword == "oneOf":
                    return "anyOf", self._disjoint(options, where)
                return keyword, options
            case "required":
                if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                    raise self._refused(where, keyword, "must be a list of names")
            case "enum":
                if not isinstance(value, list) or not value:
                    raise self._refused(where, keyword, "must be a list that is not empty")
            case "$ref":
                if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
                    raise self._refused(where, keyword, "must point into the schema itself (#/…)")
                if not self._resolves(value):
                    raise self._refused(where, keyword, f"points at {value!r}, which is not there")
            case "pattern":
                if not isinstance(value, str) or len(value) > self._limits.pattern_length:
                    raise self._refused(
                        where, keyword, f"must be text of at most {self._limits.pattern_length} characters"
                    )
            case "format":
                if value not in FORMATS:
                    raise self._refused(where, keyword, f"must be one of {', '.join(sorted(FORMATS))}")
            case word if word in _COUNTS:
                if type(value) is not int or not 0 <= value <= _MAX_COUNT:
                    raise self._refused(where, keyword, f"must be a whole number from 0 to {_MAX_COUNT}")
            case word if word in _BOUNDS:
                if type(value) not in (int, float) or not abs(value) <= _MAX_BOUND:
                    raise self._refused(where, keyword, f"must be a number of at most {_MAX_BOUND:.0e}")
        return keyword, value

    def _resolves(self, reference: str) -> bool:
        target: Any = self._root
        for step in reference[2:].split("/") if len(reference) > 1 else []:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                return False
            target = target[name]
        return isinstance(target, Mapping)

    def _disjoint(self, options: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        """As anyOf, which it is where no value fits two options: in some cases that can be seen."""
        resolved = [self._followed(option) for option in options]
        for index, first in enumerate(resolved):
            for second in resolved[index + 1 :]:
                if not (_types_differ(first, second) or _tags_differ(first, second)):
                    raise self._refused(
                        where,
                        "oneOf",
                        "is supported where options differ in type or in a required constant; use anyOf",
                    )
        return options

    def _followed(self, option: Mapping[str, Any]) -> Mapping[str, Any]:
        reference = option.get("$ref")
        if not isinstance(reference, str) or reference == "#":
            return option
        target: Any = self._root
        for step in reference[2:].split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")]
        return target if isinstance(target, Mapping) else option


def _type_names(schema: Mapping[str, Any]) -> set[str]:
    named = schema.get("type")
    names = {named} if isinstance(named, str) else set(named or ())
    return names | {"number"} if "integer" in names else names


def _types_differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    one, other = _type_names(first), _type_names(second)
    return bool(one and other and not one & other)


def _tags(schema: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Required properties with a fixed set of values."""
    properties, required = schema.get("properties"), schema.get("required")
    if (
        schema.get("type") != "object"
        or not isinstance(properties, Mapping)
        or not isinstance(required, list)
    ):
        return {}
    tags = {}
    for name in required:
        described = properties.get(name)
        if isinstance(described, Mapping):
            values = described.get("enum", [described["const"]] if "const" in described else None)
            if isinstance(values, list):
                tags[name] = values
    return tags


def _tags_differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    one, other = _tags(first), _tags(second)
    return any(name in other and not any(value in other[name] for value in one[name]) for name in one)


_XGRAMMAR: dict[str, frozenset[str]] = {
    "object": frozenset("type properties required additionalProperties".split()),
    "array": frozenset("type items prefixItems minItems maxItems".split()),
    "string": frozenset("type minLength maxLength".split()),
    "number": frozenset("type minimum maximum exclusiveMinimum exclusiveMaximum".split()),
    "integer": frozenset("type minimum maximum exclusiveMinimum exclusiveMaximum".split()),
    "boolean": frozenset({"type"}),
    "null": frozenset({"type"}),
}


def fits_xgrammar(schema: Any) -> bool:
    """Whether xgrammar 0.2.8 enforces a normalised schema exactly.

    It passes over keywords that stand beside `anyOf`, `enum` or `$ref`, over `allOf` of several, over
    required properties that are not described, and more, without an error.
    """
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    words = {word for word in schema if word not in ("$defs", "definitions")}
    inner = [*schema.get("$defs", {}).values(), *schema.get("definitions", {}).values()]
    if words == {"anyOf"}:
        return all(map(fits_xgrammar, [*schema["anyOf"], *inner]))
    if words == {"$ref"} or not words:
        return all(map(fits_xgrammar, inner))
    if words in ({"enum"}, {"const"}, {"enum", "type"}, {"const", "type"}):
        return _plain_values(schema) and all(map(fits_xgrammar, inner))
    named = schema.get("type")
    if isinstance(named, list):
        return words == {"type"}
    if not isinstance(named, str) or not words <= _XGRAMMAR[named]:
        return False
    # Where nothing is said of further members, its structural tags allow none, and JSON Schema any.
    if {"object": "additionalProperties", "array": "items"}.get(named, "type") not in schema:
        return False
    properties = schema.get("properties", {})
    if not set(schema.get("required", [])) <= set(properties):
        return False
    inner += [*properties.values(), *schema.get("prefixItems", [])]
    inner += [schema[word] for word in ("additionalProperties", "items") if word in schema]
    return all(map(fits_xgrammar, inner))


def _plain_values(schema: Mapping[str, Any]) -> bool:
    values = schema.get("enum", [schema.get("const")])
    strings = all(isinstance(value, str) for value in values)
    if "type" in schema:
        return bool(strings and schema["type"] == "string")
    return all(isinstance(value, str | int | bool | None) for value in values)
