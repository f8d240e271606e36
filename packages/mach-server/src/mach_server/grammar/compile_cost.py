"""Owns the guess of what xgrammar would take to compile a shape, from measurements of its slow cases.

llguidance compiles lazily and takes about a millisecond whatever the schema. xgrammar prepares masks for
every state of its automata, so that bounded strings and open objects with many names cost it seconds; in
exchange its masks come faster. `tools/bench/bench_grammar.py` measures both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mach_server.grammar.json_schema import fits_xgrammar
from mach_server.grammar.shapes import OneOf, Repeated, Sequence, Shape, Triggered, has_regex, schemas_of

_VOCABULARY = 150_000
"""The vocabulary that the figures below were measured with; costs grow in proportion."""
_BASE = 0.045
"""Seconds for the least of them."""
_PER_CHARACTER = 0.041
"""Seconds for each character that a bounded string may have."""
_PER_OPEN_PROPERTY = 0.056
"""Seconds for each property of an object that may have others."""
_PER_NODE = 0.0005
"""Seconds for any other part."""
AFFORDABLE = 0.15
"""Seconds of compilation that faster masks are worth."""


def prefers_xgrammar(shape: Shape, vocabulary_size: int) -> bool:
    """Whether xgrammar enforces the shape exactly, and compiles it soon enough."""
    if has_regex(shape):
        return False  # it passes over look-around without an error
    schemas = [json.loads(schema) for schema in set(schemas_of(shape))]
    if not all(map(fits_xgrammar, schemas)):
        return False
    seconds = _BASE + sum(map(_seconds, schemas)) + _PER_NODE * _parts(shape)
    return seconds * vocabulary_size / _VOCABULARY <= AFFORDABLE


def _parts(shape: Shape) -> int:
    """Nodes of the tree, shared ones counted each time, as its structural tags repeat them."""
    match shape:
        case Sequence(inner) | OneOf(inner):
            return 1 + sum(map(_parts, inner))
        case Repeated(part, _, _) | Triggered(_, part, _):
            return 1 + _parts(part)
    return 1


def _seconds(schema: Any) -> float:
    if isinstance(schema, list):
        return sum(map(_seconds, schema))
    if not isinstance(schema, Mapping):
        return 0.0
    seconds = _PER_NODE
    bound = max(_count(schema.get("maxLength")), _count(schema.get("minLength")))
    seconds += _PER_CHARACTER * bound
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and schema.get("additionalProperties") is not False:
        seconds += _PER_OPEN_PROPERTY * len(properties)
    seconds += _PER_NODE * max(_count(schema.get("maxItems")), _count(schema.get("minItems")))
    for value in schema.values():
        if isinstance(value, Mapping | list):
            seconds += _seconds(value)
    return seconds


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
