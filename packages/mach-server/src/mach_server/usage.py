"""Owns the usage that OpenAI's older endpoints tell: token counts, and what the experts cost."""

from __future__ import annotations

import msgspec

from mach_server.collected_answer import Outcome
from mach_server.expert_io import ExpertIO


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """No prompt token is taken from a cache yet."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """Tokens whose text became reasoning."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """Token counts, of which the end token is one, and an extension: the bill for the experts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    expert_io: ExpertIO | None

    @classmethod
    def of(cls, outcome: Outcome) -> Usage:
        """The usage of one answer."""
        return cls(
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            total_tokens=outcome.prompt_tokens + outcome.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=outcome.reasoning_tokens),
            expert_io=outcome.expert_io,
        )
