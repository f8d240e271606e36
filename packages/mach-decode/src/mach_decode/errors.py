"""Owns mach-decode's exception tree.

MachError (mach.errors)
└── DecodeError
    ├── PromptTooLongError       prompt and answer do not fit into the context
    ├── KvBudgetError            prompt and answer fit the context, but not the memory for keys and values
    ├── SamplingError            a sampling parameter is out of range
    ├── ResidencyError           the checkpoint cannot be loaded in the residency mode asked for
    ├── TokenizerError           the checkpoint has no usable tokenizer or chat template
    ├── EngineBusyError          the engine answers one request at a time
    └── GenerationCancelledError the caller withdrew the request
"""

from __future__ import annotations

from mach.errors import MachError


class DecodeError(MachError):
    """Base of every error that mach-decode raises by itself."""


class PromptTooLongError(DecodeError):
    """The prompt leaves no room for an answer.

    Attributes:
        prompt_tokens: its length.
        context_length: tokens the model can see.
    """

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, but the context holds {context_length} including the "
            "answer: shorten the prompt"
        )
        self.prompt_tokens, self.context_length = prompt_tokens, context_length


class KvBudgetError(DecodeError):
    """Prompt and answer would need more memory for keys and values than is set apart for them.

    Attributes:
        prompt_tokens: the prompt's length.
        max_tokens: what was asked for; None is one token at least.
        tokens: prompt and answer that there is memory for.
        needed_bytes: what prompt and answer would take.
        budget_bytes: what is set apart.
    """

    def __init__(
        self,
        prompt_tokens: int,
        max_tokens: int | None,
        *,
        tokens: int,
        needed_bytes: int,
        budget_bytes: int,
    ) -> None:
        answer = "an answer" if max_tokens is None else f"an answer of up to {max_tokens}"
        super().__init__(
            f"a prompt of {prompt_tokens} tokens and {answer} need {needed_bytes / 1e9:.4g} GB for keys and "
            f"values, but {budget_bytes / 1e9:.4g} GB are set apart for them, which hold {tokens} tokens: "
            "shorten the prompt or lower max_tokens, or start with a higher --kv-cache-gb"
        )
        self.prompt_tokens, self.max_tokens, self.tokens = prompt_tokens, max_tokens, tokens
        self.needed_bytes, self.budget_bytes = needed_bytes, budget_bytes


class SamplingError(DecodeError):
    """A sampling parameter is out of range.

    Attributes:
        parameter: its name.
    """

    def __init__(self, parameter: str, why: str) -> None:
        super().__init__(f"{parameter} {why}")
        self.parameter = parameter


class ResidencyError(DecodeError):
    """The checkpoint cannot be loaded in the residency mode asked for; the message says which can."""


class TokenizerError(DecodeError):
    """The checkpoint has no usable tokenizer or chat template."""


class EngineBusyError(DecodeError):
    """The engine is answering another request; it answers one at a time."""


class GenerationCancelledError(DecodeError):
    """The caller withdrew the request; the engine is free again."""
