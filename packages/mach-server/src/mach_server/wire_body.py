"""Owns the step from a body's bytes to a typed structure, and how every way to fail is named to the client.

What the fields mean is the business of each endpoint's own request file.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from mach_server.errors import BadRequestError, ModelNotFoundError

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"field `(?P<field>[^`]*)`")
_MODEL_SHOWN = 200

Body = TypeVar("Body")
Value = TypeVar("Value")


_INSTEAD = {
    "best_of": "leave it out, ask several times and keep the best answer",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "n": "leave it out, and ask once for each answer (with a seed each, if there is one)",
}
"""What to do where leaving a field out is not all."""


def decode_body(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """The body as the decoder's structure, its types checked and nothing else.

    Raises:
        BadRequestError: it is not UTF-8 or not JSON, or a field is unknown, missing or of the wrong type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except msgspec.DecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise BadRequestError("the body is not valid UTF-8", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequestError("the body is nested too deeply", code="invalid_json") from error


def check_model(model: str, names: frozenset[str]) -> None:
    """Refuse a request for another model.

    Raises:
        ModelNotFoundError: none of `names` is `model`.
    """
    if model not in names:
        raise ModelNotFoundError(
            f"the model {model[:_MODEL_SHOWN]!r} is not loaded, but {', '.join(sorted(names))} is",
            param="model",
            code="model_not_found",
        )


def refuse_unsupported(body: object, neutral: dict[str, tuple[object, ...]]) -> None:
    """Refuse fields that this version does not have, unless they change nothing.

    Args:
        body: a structure with these fields.
        neutral: field → the values, null apart, that change nothing.

    Raises:
        BadRequestError: naming the first such field.
    """
    for name, harmless in neutral.items():
        value = getattr(body, name)
        if value is not None and not any(value == same and type(value) is type(same) for same in harmless):
            raise unsupported(name, _INSTEAD.get(name, "leave it out"))


def unsupported(param: str, why: str = "leave it out") -> BadRequestError:
    """The refusal of a field, or a value, that this server does not have."""
    return BadRequestError(
        f"{param} is not supported by this server; {why}", param=param, code="unsupported_parameter"
    )


def invalid(param: str, why: str) -> BadRequestError:
    """The refusal of a field whose value cannot be. Args: why: goes on after the field's name."""
    return BadRequestError(f"{param} {why}", param=param, code="invalid_value")


def missing(param: str) -> BadRequestError:
    """The refusal of a request without a field that it needs."""
    return BadRequestError(f"{param} is missing", param=param, code="missing_required_parameter")


def needed(value: Value | None, param: str) -> Value:
    """`value`, which must be there.

    Raises:
        BadRequestError: it is not.
    """
    if value is None:
        raise missing(param)
    return value


def json_object(text: str, param: str) -> dict[str, Any]:
    """The object that `text` is the JSON of.

    Raises:
        BadRequestError: it is not the JSON of an object.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid(param, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise invalid(param, "is not the JSON of an object")
    return value


def _type_error(message: str) -> BadRequestError:
    """The error for msgspec's message, with its JSON path taken out and named as `param`."""
    found = _PATH.search(message)
    param = found["path"] if found else ""
    message = _PATH.sub("", message)
    field = _FIELD.search(message)
    if field:
        param = f"{param}.{field['field']}".removeprefix(".")
    if "unknown field" in message:
        return BadRequestError(f"{param} is not a known field", param=param, code="unknown_parameter")
    if "missing required field" in message:
        return missing(param)
    return BadRequestError(f"{param or 'the body'}: {message}", param=param or None, code="invalid_type")
