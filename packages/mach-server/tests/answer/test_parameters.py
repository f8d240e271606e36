"""The types of parameters: from schemas of every kind, and from hostile ones in bounded time."""

from typing import Any

import pytest

from mach_server.answer.parameters import is_json, types_of


@pytest.mark.parametrize(
    ("described", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"enum": ["a", 1, None, True, [], {}]}, {"string", "number", "null", "boolean", "array", "object"}),
        ({"const": "a"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
        ({"$ref": "#/$defs/loop"}, {"string"}),
        ({"$ref": "https://elsewhere"}, {"string"}),
        ({}, {"string"}),
        ("nonsense", {"string"}),
        ({"type": 5, "anyOf": "x", "enum": 3}, {"string"}),
    ],
)
def test_types_come_from_the_schema(described: Any, types: set[str]) -> None:
    schema = {
        "properties": {"p": described},
        "$defs": {"a/b": {"type": "boolean"}, "loop": {"$ref": "#/$defs/loop"}},
    }
    assert types_of(schema, "p") == types


def test_a_schema_that_refers_to_itself_a_thousandfold_is_soon_done() -> None:
    wide = {"anyOf": [{"$ref": "#/$defs/wide"}] * 1000}
    assert types_of({"properties": {"p": wide}, "$defs": {"wide": wide}}, "p") == {"string"}


def test_json_is_told_from_text() -> None:
    assert is_json(" [1, {}] ") and is_json("-1.5e3")
    assert not any(map(is_json, ("", "1 2", "NaN", "True", "{", '"a')))
