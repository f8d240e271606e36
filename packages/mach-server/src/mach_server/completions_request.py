"""Owns the request body of `/v1/completions`: text (or tokens) to go on from, without a chat template."""

from __future__ import annotations

from typing import Any

import msgspec

from mach_server.answer_request import AnswerRequest
from mach_server.completion_fields import CompletionFields
from mach_server.limits import Limits
from mach_server.sampling_fields import MOST_ALTERNATIVES, check_count
from mach_server.wire_body import check_model, decode_body, invalid, refuse_unsupported, unsupported

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint alone."""

_NEUTRAL: dict[str, tuple[object, ...]] = {"best_of": (1,), "n": (1,), "suffix": ("",)}


class CompletionRequest(CompletionFields, forbid_unknown_fields=True, kw_only=True):
    """The body: what is honoured, then what is harmless, then what is refused unless it changes nothing."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None

    user: Any = None

    best_of: Any = None
    n: Any = None
    suffix: Any = None

    def answer_request(self, model_names: frozenset[str], limits: Limits) -> AnswerRequest:
        """What the body asks for.

        Raises:
            BadRequestError, ModelNotFoundError: naming the field that cannot be honoured.
            SamplingError: a sampling parameter is out of range.
        """
        check_model(self.model, model_names)
        refuse_unsupported(self, _NEUTRAL)
        # With echo the prompt is part of the answer, so that none need be generated.
        check_count("max_tokens", self.max_tokens, least=0 if self.echo else 1)
        check_count("logprobs", self.logprobs, least=0, most=MOST_ALTERNATIVES)
        self.check_stream_options()
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        echoed = self.logprobs if self.echo else None
        return AnswerRequest(
            prompt=_one_prompt(self.prompt),
            prompt_field="prompt",
            output=self.output(),
            max_tokens=limit,
            stop=self.stops(limits),
            sampling=self.sampling(limits),
            logprobs=self.logprobs,
            # The engine generates nothing only while it measures the prompt.
            prompt_logprobs=0 if limit == 0 and echoed is None else echoed,
        )


_DECODER = msgspec.json.Decoder(CompletionRequest)


def parse_completion_request(body: bytes) -> CompletionRequest:
    """The body as a CompletionRequest, its types checked and nothing else.

    Raises:
        BadRequestError: it is not UTF-8 or not JSON, or a field is unknown, missing or of the wrong type.
    """
    return decode_body(_DECODER, body)


def _one_prompt(prompt: str | list[Any]) -> str | tuple[int, ...]:
    """The prompt: text or token ids, possibly as the only item of a list."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        if not prompt:
            raise invalid("prompt", "must not be empty")
        return prompt
    if any(isinstance(item, str | list) for item in prompt):
        raise unsupported("prompt", "send one request for each prompt")
    if not prompt or not all(type(item) is int for item in prompt):
        raise invalid("prompt", "must be text, or a list of token ids that is not empty")
    return tuple(prompt)
