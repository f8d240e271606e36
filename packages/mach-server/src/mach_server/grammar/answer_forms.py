"""Owns what a request may ask of an answer's form, before it is known how that is enforced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonObjectForm:
    """Any JSON object.

    Attributes:
        param: the request's field, for messages; the same in all forms.
    """

    param: str = "response_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchemaForm:
    """A JSON value that a schema describes.

    Attributes:
        schema: the schema, as parsed from the request. Enforced whether strict or not.
        strict: whether objects have only the properties that the schema names, unless it says otherwise.
    """

    schema: Mapping[str, Any]
    strict: bool = False
    param: str = "response_format.json_schema.schema"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexForm:
    """Text that a regular expression matches as a whole: Rust's syntax, without look-around."""

    pattern: str
    param: str = "guided_regex"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceForm:
    """One of several texts."""

    options: tuple[str, ...]
    param: str = "guided_choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that may be called.

    Attributes:
        name: its name.
        parameters: the JSON schema of its arguments; None is none at all.
        strict: whether the schema must be enforced. Otherwise one that cannot be is replaced by any object,
            because a schema that is not strict is advice to the model.
    """

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallForm:
    """Calls of functions.

    Attributes:
        tools: the functions.
        choice: `auto` leaves it to the model whether it calls one; `required` makes it; a named choice is
            `required` with that function as the only one in `tools`.
        parallel: whether there may be several calls.
    """

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    parallel: bool = True
    param: str = "tools"


AnswerForm = JsonObjectForm | JsonSchemaForm | RegexForm | ChoiceForm | ToolCallForm
