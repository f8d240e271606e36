"""Owns how much prompt and answer may hold: the model's context, and the memory for keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mach_decode.errors import KvBudgetError, PromptTooLongError


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """The room of one request.

    Attributes:
        context_length: tokens that the model takes.
        tokens: tokens whose keys and values the budget holds; at most `context_length`.
        nbytes: the budget; 0 where the size of keys and values is not known, and nothing is bounded.
        size: tokens → bytes of their keys and values, at most; None where that is not known.
    """

    context_length: int
    tokens: int
    nbytes: int
    size: Callable[[int], int] | None

    def room(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """Tokens that the answer may have.

        Args:
            prompt_tokens: tokens of the prompt.
            max_tokens: what is asked for; None is whatever there is room for.

        Raises:
            PromptTooLongError: prompt and one token do not fit into the context.
            KvBudgetError: what is asked for fits the context, but not the budget.
        """
        if prompt_tokens >= self.context_length:
            raise PromptTooLongError(prompt_tokens, self.context_length)
        answer = 1 if max_tokens is None else max_tokens
        needed = min(prompt_tokens + answer, self.context_length)
        if needed > self.tokens:
            assert self.size is not None, "what is not known bounds nothing"
            raise KvBudgetError(
                prompt_tokens,
                max_tokens,
                tokens=self.tokens,
                needed_bytes=self.size(needed),
                budget_bytes=self.nbytes,
            )
        room = self.tokens - prompt_tokens
        return room if max_tokens is None else min(room, max_tokens)
