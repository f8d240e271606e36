"""Owns the sampling fields that all endpoints share: their defaults, their bounds, what is refused."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from mach_decode.sampling import SamplingParams
from mach_server.errors import BadRequestError
from mach_server.limits import Limits
from mach_server.wire_body import invalid

DEFAULT_TEMPERATURE = 1.0
"""OpenAI's and Anthropic's; the library's own default is greedy."""

MOST_ALTERNATIVES = 20
"""The most alternatives for one token that OpenAI tells."""

Value = TypeVar("Value")


class SamplingFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of all of OpenAI's endpoints, and what vLLM adds to them."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def sampling(self, limits: Limits) -> SamplingParams:
        """How tokens are chosen; raises as `sampling_of`."""
        return self._sampling_with(limits)

    def _sampling_with(self, limits: Limits, **more: Any) -> SamplingParams:
        """These fields, and `more` that only some bodies have, named as in `sampling_of`."""
        return sampling_of(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            limits=limits,
            **more,
        )


def sampling_of(
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    logit_bias: Mapping[str, float] | None = None,
    seed: int | None = None,
    limits: Limits,
) -> SamplingParams:
    """The engine's parameters; null means the default, and without a seed a random one is drawn.

    Raises:
        SamplingError: a parameter is out of range.
        BadRequestError: logit_bias has a key that is no token id, or too many of them.
    """
    off = SamplingParams()
    return SamplingParams(
        temperature=_given(temperature, DEFAULT_TEMPERATURE),
        top_p=_given(top_p, off.top_p),
        top_k=_given(top_k, off.top_k),
        min_p=_given(min_p, off.min_p),
        repetition_penalty=_given(repetition_penalty, off.repetition_penalty),
        frequency_penalty=_given(frequency_penalty, off.frequency_penalty),
        presence_penalty=_given(presence_penalty, off.presence_penalty),
        logit_bias=_biases(logit_bias or {}, limits),
        seed=secrets.randbits(63) if seed is None else seed,
    )


def stops_of(
    stop: str | Sequence[str] | None, most: int, limits: Limits, field: str = "stop"
) -> tuple[str, ...]:
    """Stop strings, which may be given as one string.

    Raises:
        BadRequestError: there are too many, or one is empty or too long.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > most:
        raise invalid(field, f"holds {len(stops)} strings, but {most} are allowed")
    for text in stops:
        if not 1 <= len(text) <= limits.stop_string_length:
            raise invalid(
                field,
                f"holds a string of {len(text)} characters; allowed are 1 to {limits.stop_string_length}",
            )
    return stops


def check_count(field: str, value: int | None, *, least: int, most: int | None = None) -> None:
    """Refuse a number that is out of range.

    Raises:
        BadRequestError: naming `field`.
    """
    if value is not None and value < least:
        raise invalid(field, f"must be at least {least}, not {value}")
    if value is not None and most is not None and value > most:
        raise invalid(field, f"must be at most {most}, not {value}")


def _biases(logit_bias: Mapping[str, float], limits: Limits) -> tuple[tuple[int, float], ...]:
    if len(logit_bias) > limits.logit_biases:
        raise invalid("logit_bias", f"holds {len(logit_bias)} tokens, but {limits.logit_biases} are allowed")
    for token in logit_bias:
        if not (token.isascii() and token.isdigit() and len(token) <= _TOKEN_DIGITS):
            raise BadRequestError(
                f"logit_bias: {token[:40]!r} is not a token id", param="logit_bias", code="invalid_value"
            )
    return tuple((int(token), bias) for token, bias in logit_bias.items())


_TOKEN_DIGITS = 9


def _given(value: Value | None, default: Value) -> Value:
    return default if value is None else value
