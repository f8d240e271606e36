"""Owns the arguments of wire formats that give each parameter by itself: from values to one JSON object.

A value on the wire has no quotes, so that its type comes from the tool's JSON schema (or from the wire). Text
is given out as it comes; numbers, objects and the like are kept until they are complete, because one that is
not valid JSON is given out as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mach_server.answer.call_writer import CallWriter, escaped, json_text
from mach_server.answer.json_scanner import JsonScanner
from mach_server.answer.text_window import TextWindow

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's parameters, by the tool's name."""

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_DEPTH = 32
"""Of alternatives and references on the way to one parameter's type."""


class ArgumentsObject:
    """Writes one call's arguments."""

    def __init__(self, out: CallWriter, schema: Mapping[str, Any] | None) -> None:
        """Args: schema: of the tool's parameters; without one every value is text unless the wire says."""
        self._out = out
        self._schema = schema or {}
        self._keys: set[str] = set()
        self._as_text = False
        self._types: frozenset[str] = frozenset()
        self._kept: list[str] = []

    def begin(self, key: str, *, as_text: bool | None = None) -> bool:
        """Write a parameter's name; False for one that was there before.

        Args:
            key: the name.
            as_text: what the wire says of the value's type; None leaves it to the schema.
        """
        if key in self._keys:
            return False
        self._types = types_of(self._schema, key)
        self._as_text = self._types == {"string"} if as_text is None else as_text
        if as_text is False:
            self._types = frozenset()
        opening = '"' if self._as_text else ""
        self._out.arguments(f"{', ' if self._keys else '{'}{json_text(key)}: {opening}")
        self._keys.add(key)
        return True

    def more(self, text: str) -> None:
        """More of the value."""
        if self._as_text:
            self._out.arguments(escaped(text))
        else:
            self._kept.append(text)

    def end(self) -> None:
        """The value is complete."""
        if self._as_text:
            self._out.arguments('"')
            return
        text, self._kept = "".join(self._kept), []
        value = _PYTHON_WORDS.get(text.strip(), text.strip())
        # Where a string is allowed too, 12 may be meant as text; what looks like nothing but JSON is JSON.
        marked = value in ("null", "true", "false") or value.startswith(("{", "["))
        as_json = is_json(value) and (marked or "string" not in self._types)
        self._out.arguments(value if as_json else json_text(text))

    def close(self) -> None:
        """All parameters have been given."""
        self._out.arguments("}" if self._keys else "{}")


def is_json(text: str) -> bool:
    """Whether `text` is one JSON value (RFC 8259) and nothing else."""
    window, scanner = TextWindow(), JsonScanner()
    window.push(text)
    window.ended = True
    scanner.scan(window)
    return scanner.done and not window.rest().strip(" \t\r\n")


def types_of(schema: Mapping[str, Any], key: str) -> frozenset[str]:
    """The JSON types that a parameter may have; `string` alone for one that the schema does not describe."""
    properties = schema.get("properties")
    described = properties.get(key) if isinstance(properties, Mapping) else None
    return _types(described, schema, set(), _DEPTH) or frozenset({"string"})


def _types(node: Any, root: Mapping[str, Any], followed: set[str], depth: int) -> frozenset[str]:
    """Types of a schema. Each reference is followed once, so that no schema takes long."""
    if not isinstance(node, Mapping) or not depth:
        return frozenset()
    named = node.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    values = node.get("enum", [node["const"]] if "const" in node else None)
    if isinstance(values, list):
        return frozenset(_type_of(value) for value in values)
    reference = node.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        followed.add(reference)
        return _types(_resolve(reference, root), root, followed, depth - 1)
    options = [option for word in ("anyOf", "oneOf", "allOf") for option in _listed(node.get(word))]
    return frozenset().union(*(_types(option, root, followed, depth - 1) for option in options))


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    target: Any = root if reference.startswith("#/") else None
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        target = target.get(name) if isinstance(target, Mapping) else None
    return target


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_of(value: Any) -> str:
    if isinstance(value, str):
        return "string"
    return {bool: "boolean", int: "number", float: "number", list: "array", type(None): "null"}.get(
        type(value), "object"
    )
