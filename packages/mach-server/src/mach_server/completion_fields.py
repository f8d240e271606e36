"""Owns the body fields that `/v1/chat/completions` and `/v1/completions` share, and what they mean."""

from __future__ import annotations

from typing import Any

import msgspec

from mach_decode.sampling import SamplingParams
from mach_server.answer_request import OutputRule
from mach_server.limits import Limits
from mach_server.output_fields import StructuredOutputs, guided_rule, output_rule
from mach_server.sampling_fields import SamplingFields, stops_of
from mach_server.wire_body import invalid


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`include_obfuscation` is padding against traffic analysis; there is none, whatever it says."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CompletionFields(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's fields of both endpoints, and vLLM's extensions."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """Refuse options of a stream that is none; raises BadRequestError."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "is only allowed with stream: true")

    def output(self) -> OutputRule | None:
        """The form that the text must have; raises BadRequestError."""
        return guided_rule(self) or output_rule(self.response_format, "response_format")

    def stops(self, limits: Limits) -> tuple[str, ...]:
        """The strings that end the answer; raises BadRequestError."""
        return stops_of(self.stop, limits.stop_strings, limits)

    def sampling(self, limits: Limits) -> SamplingParams:
        """How tokens are chosen; raises as `sampling_of`."""
        return self._sampling_with(
            limits,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self.logit_bias,
        )
