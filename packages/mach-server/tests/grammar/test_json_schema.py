"""Every keyword that is let through is enforced, by each backend that gets the schema."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from mach_server.grammar.backend import CompiledGrammar
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.json_schema import FORMATS, canonical, fits_xgrammar, normalised
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.shapes import Json
from mach_server.grammar.xgrammar_backend import XgrammarBackend

Matches = Callable[[CompiledGrammar, str], bool]
LIMITS = GrammarLimits()


def checked(schema: Any, *, closed: bool = False) -> dict[str, Any]:
    return normalised(schema, param="response_format", limits=LIMITS, closed=closed)


def an_object(**words: Any) -> dict[str, Any]:
    return {"type": "object", **words}


INTEGER: dict[str, Any] = {"type": "integer"}
TREE = {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}
CASES: list[tuple[dict[str, Any], str, str]] = [
    (INTEGER, "-5", "5.5"),
    ({"type": "number"}, "1.5e3", "x"),
    ({"type": "boolean"}, "true", "1"),
    ({"type": "null"}, "null", "0"),
    ({"type": ["integer", "null"]}, "null", '"x"'),
    ({"type": "integer", "minimum": 3, "maximum": 12}, "12", "13"),
    ({"type": "integer", "exclusiveMinimum": 3}, "4", "3"),
    ({"type": "number", "minimum": -1, "exclusiveMaximum": 1.5}, "-0.5", "1.5"),
    ({"type": "integer", "multipleOf": 3}, "6", "7"),
    ({"type": "number", "multipleOf": 0.5}, "1.5", "1.3"),
    ({"type": "string", "minLength": 2, "maxLength": 3}, '"abc"', '"abcd"'),
    ({"type": "string", "minLength": 2}, '"é😀"', '"a"'),
    ({"type": "string", "pattern": "^a+$"}, '"aa"', '"ab"'),
    ({"type": "string", "pattern": "a"}, '"xay"', '"xy"'),
    ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, '"abc"', '"abcd"'),
    ({"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 2}, "[1, 2]", "[1, 2, 3]"),
    ({"type": "array", "items": INTEGER, "minItems": 1}, "[1]", "[]"),
    ({"type": "array", "prefixItems": [INTEGER], "items": False}, "[1]", "[1, 2]"),
    ({"type": "array", "prefixItems": [INTEGER], "items": {"type": "null"}}, "[1, null]", "[1, 2]"),
    (an_object(properties={"a": INTEGER}, required=["a"]), '{"a": 1, "b": 2}', '{"b": 2}'),
    (an_object(properties={"a": INTEGER}, additionalProperties=False), "{}", '{"b": 2}'),
    (an_object(properties={"a": INTEGER}), '{"b": "x"}', '{"a": "x"}'),
    (an_object(additionalProperties=INTEGER), '{"b": 1}', '{"b": "x"}'),
    (an_object(required=["z"]), '{"z": 1}', "{}"),
    (an_object(patternProperties={"^n_": INTEGER}, additionalProperties=False), '{"n_a": 1}', '{"b": 1}'),
    (an_object(patternProperties={"^n_": INTEGER}), '{"b": "x"}', '{"n_a": "x"}'),
    (an_object(minProperties=1), '{"a": 1}', "{}"),
    (an_object(maxProperties=1), '{"a": 1}', '{"a": 1, "b": 2}'),
    ({"anyOf": [INTEGER, {"type": "null"}]}, "null", '"x"'),
    ({"oneOf": [INTEGER, {"type": "null"}]}, "null", '"x"'),
    (
        {
            "oneOf": [
                an_object(properties={"k": {"const": name}, name: INTEGER}, required=["k", name])
                for name in ("a", "b")
            ]
        },
        '{"k": "b", "b": 1}',
        '{"k": "b", "a": 1}',
    ),
    ({"enum": [1, "a", None]}, "null", '"b"'),
    ({"enum": [1, {"x": [1]}]}, '{"x": [1]}', '{"x": [2]}'),
    ({"enum": [1, "a"], "type": "string"}, '"a"', "1"),
    ({"const": 'é/"\\'}, json.dumps('é/"\\', ensure_ascii=False), '"e"'),
    ({"allOf": [INTEGER, {"minimum": 3}]}, "3", "2"),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}, "null", "1"),
    ({"$ref": "#/definitions/x", "definitions": {"x": {"type": "null"}}}, "null", "1"),
    ({"$ref": "#/$defs/x", "$defs": {"x": INTEGER}, "minimum": 3}, "3", "2"),
    (TREE, "[[], [[]]]", "[1]"),
    ({"type": "integer", "enum": [1, 2, 3], "minimum": 2}, "2", "1"),
    ({"type": "string", "minLength": 2, "anyOf": [{"pattern": "^a"}, {"pattern": "^b"}]}, '"bb"', '"b"'),
    ({"properties": {"a": INTEGER}}, "5", '{"a": "x"}'),
    ({}, '{"a": [1, "x", null]}', "{"),
    ({"title": "T", "description": "d", "default": 1, "x-own": 1, **INTEGER}, "1", '"x"'),
]
OF_FORMATS = {
    "date": ("2024-02-10", "2024-13-01"),
    "date-time": ("2024-02-10T10:00:00Z", "2024-02-10"),
    "time": ("10:00:00Z", "99:00"),
    "duration": ("P1D", "1D"),
    "email": ("a@b.co", "ab"),
    "hostname": ("a.b", "-a"),
    "ipv4": ("1.2.3.4", "1.2.3.400"),
    "ipv6": ("::1", "zz"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000", "123"),
    "uri": ("http://a.b/c", "a b"),
}
CASES += [
    ({"type": "string", "format": name}, json.dumps(good), json.dumps(bad))
    for name, (good, bad) in OF_FORMATS.items()
]


def test_every_format_has_a_case() -> None:
    assert set(OF_FORMATS) == FORMATS


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[json.dumps(case[0])[:60] for case in CASES])
def test_a_schema_is_enforced_by_every_backend_that_gets_it(
    schema: dict[str, Any],
    good: str,
    bad: str,
    xgrammar_backend: XgrammarBackend,
    llguidance_backend: LlguidanceBackend,
    matches: Matches,
) -> None:
    shape = Json(canonical(checked(schema)))
    backends = (
        [llguidance_backend, xgrammar_backend] if fits_xgrammar(checked(schema)) else [llguidance_backend]
    )
    for backend in backends:
        grammar = backend.compile(shape, param="response_format")
        assert matches(grammar, good), backend.name
        assert not matches(grammar, bad), backend.name


def test_simple_schemas_fit_xgrammar_and_those_it_gets_wrong_do_not() -> None:
    assert fits_xgrammar(
        checked(an_object(properties={"a": INTEGER, "b": {"enum": ["x", "y"]}}, required=["a"]), closed=True)
    )
    assert fits_xgrammar(checked({"anyOf": [INTEGER, {"type": "array", "items": {"type": "string"}}]}))
    for schema in (
        {"allOf": [INTEGER, {"minimum": 3}]},
        {"type": "number", "multipleOf": 0.5},
        an_object(required=["z"]),
        {"type": "string", "pattern": "a"},
        {"type": "array", "items": {"type": "string", "format": "date"}},
        {"$ref": "#/$defs/x", "$defs": {"x": INTEGER}, "minimum": 3},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string", "pattern": "a"}}},
        {"enum": [1, "a"], "type": "string"},
        {"minimum": 3},
        an_object(properties={"a": INTEGER}),
        {"type": "array"},
    ):
        assert not fits_xgrammar(checked(schema)), schema


@pytest.mark.parametrize("space", ["", " ", "\n", "\n" + 15 * " "])
def test_white_space_is_free_up_to_a_bound(space: str, backend: Any, matches: Matches) -> None:
    grammar = backend.compile(
        Json(canonical(an_object(properties={"a": INTEGER}, additionalProperties=False))), param=""
    )
    assert matches(grammar, f'{{{space}"a"{space}:{space}1{space}}}')
    assert not matches(grammar, f'{{{16 * " "}{space} "a": 1}}')


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {}}, "if"),
        ({"properties": {"a": {"items": {"contains": {}}}}}, "contains"),
        ({"propertyNames": {}}, "propertyNames"),
        ({"dependentRequired": {}}, "dependentRequired"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"nullable": True}, "nullable"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"type": "strnig"}, "type"),
        ({"type": [1]}, "type"),
        ({"$ref": "https://example.com/schema"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [INTEGER], "anyOf": [INTEGER]}, "oneOf"),
        ({"anyOf": []}, "anyOf"),
        ({"items": [INTEGER]}, "items"),
        ({"required": "a"}, "required"),
        ({"enum": []}, "enum"),
        ({"minLength": -1}, "minLength"),
        ({"maxItems": 10**9}, "maxItems"),
        ({"minimum": "3"}, "minimum"),
        ({"maximum": float("nan")}, "maximum"),
        ({"pattern": "a" * 5000}, "pattern"),
        ({"properties": [1]}, "properties"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(GrammarRefusedError, match=keyword.replace("$", r"\$")) as refused:
        checked(schema)
    assert refused.value.keyword == keyword
    assert refused.value.param == "response_format"
    assert refused.value.status == 400


def test_size_and_depth_are_bounded() -> None:
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"items": deep}
    with pytest.raises(GrammarRefusedError, match="deep"):
        checked(deep)
    with pytest.raises(GrammarRefusedError, match="bytes"):
        checked({"enum": ["x" * 300_000]})


def test_strict_closes_objects_that_name_their_properties() -> None:
    schema = an_object(properties={"a": an_object(properties={}), "b": an_object(additionalProperties=True)})
    closed = checked(schema, closed=True)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert closed["properties"]["b"]["additionalProperties"] == {}
    parts = checked(
        {"allOf": [an_object(properties={"a": {}}), an_object(properties={"b": {}})]}, closed=True
    )
    assert all("additionalProperties" not in part for part in parts["allOf"])
