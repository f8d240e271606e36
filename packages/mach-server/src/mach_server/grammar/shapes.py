"""Owns the shape of a constrained answer, independent of who enforces it: a small tree of values.

A shape says which texts are allowed. JSON schemas stay schemas in it, because the backends know them best.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Just this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value that a schema describes.

    Attributes:
        schema: the schema as JSON text, checked and normalised by `json_schema.normalised`.
    """

    schema: str


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that a regular expression (Rust's syntax) matches as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Until:
    """Any text up to the first `marker`, and that."""

    marker: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part after another."""

    parts: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these."""

    options: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A part, at least and at most so many times; None is without end."""

    part: Shape
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Triggered:
    """Any text; but wherever `trigger` comes up in it, `then` must follow.

    Attributes:
        trigger: the text.
        then: what follows it.
        again: whether any text may follow after that, and the trigger again.
    """

    trigger: str
    then: Shape
    again: bool


Shape = Text | Json | Regex | Until | Sequence | OneOf | Repeated | Triggered


def optional(part: Shape) -> Shape:
    """The part, or nothing."""
    return Repeated(part, 0, 1)


def schemas_of(shape: Shape) -> list[str]:
    """Every JSON schema in a shape."""
    match shape:
        case Json(schema):
            return [schema]
        case Sequence(inner) | OneOf(inner):
            return [schema for part in inner for schema in schemas_of(part)]
        case Repeated(part, _, _) | Triggered(_, part, _):
            return schemas_of(part)
    return []


def has_regex(shape: Shape) -> bool:
    """Whether a user's regular expression is in a shape."""
    match shape:
        case Regex():
            return True
        case Sequence(inner) | OneOf(inner):
            return any(map(has_regex, inner))
        case Repeated(part, _, _) | Triggered(_, part, _):
            return has_regex(part)
    return False
