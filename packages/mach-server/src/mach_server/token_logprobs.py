"""Owns how OpenAI's endpoints show a token's log-probability: its text, its bytes, its alternatives."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mach_decode.logprobs import TokenLogprob
from mach_decode.token_text import TokenTexts

LEAST = -9999.0
"""What OpenAI shows for tokens that are next to impossible; JSON has no infinity."""


class TokenAlternative(msgspec.Struct, kw_only=True):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class TokenEntry(msgspec.Struct, kw_only=True):
    """A token of the answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenAlternative]


def token_entries(entries: Iterable[TokenLogprob], texts: TokenTexts) -> list[TokenEntry]:
    """The entries of an answer's tokens."""
    return [
        TokenEntry(
            token=texts.text_of(entry.token),
            logprob=shown(entry.logprob),
            bytes=list(texts.bytes_of(entry.token)),
            top_logprobs=[
                TokenAlternative(
                    token=texts.text_of(token), logprob=shown(logprob), bytes=list(texts.bytes_of(token))
                )
                for token, logprob in entry.top
            ],
        )
        for entry in entries
    ]


def shown(logprob: float | None) -> float:
    """A log-probability as it is told; of a measured token, for which it is not None."""
    assert logprob is not None, "only a prompt's first token has none"
    return max(logprob, LEAST)
