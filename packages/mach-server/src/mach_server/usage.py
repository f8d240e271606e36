"""Owns the token counts that OpenAI's older endpoints tell."""

from __future__ import annotations

import msgspec

from mach_server.collected_answer import Outcome


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """No prompt token is taken from a cache yet."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """Tokens whose text became reasoning."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """Token counts; the end token counts as a completion token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, outcome: Outcome) -> Usage:
        """The usage of one answer."""
        return cls(
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            total_tokens=outcome.prompt_tokens + outcome.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=outcome.reasoning_tokens),
        )
