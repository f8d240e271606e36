"""Owns what `/v1/stats` and `/metrics` count about answers; plain numbers with one writing thread each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mach_decode.request import GenerationFigures
from mach_server.latency_histogram import LatencyHistogram


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAnswer:
    """How far the answer being made has come.

    Attributes:
        prompt_tokens: tokens in its prompt.
        prefilled: those already processed.
        completion_tokens: tokens generated.
    """

    prompt_tokens: int
    prefilled: int
    completion_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `phase` is `prefill` until the first token."""
        return {
            "phase": "decode" if self.completion_tokens else "prefill",
            "prompt_tokens": self.prompt_tokens,
            "prefilled_tokens": self.prefilled,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(slots=True)
class GenerationCounts:
    """Counts since the server started. Tokens and seconds are those of completed answers.

    Attributes:
        completed: answers that reached their end.
        cancelled: answers stopped because nobody wanted the rest.
        withdrawn: requests that left the queue before their turn.
        failed: answers that ended in an error.
        last: figures of the latest completed answer, or None.
        prefilled_tokens: prompt tokens processed, those of answers that did not complete included.
        generated_tokens: tokens generated, likewise.
        first_token_latency: from a request's submission to its first token, the queue included.
        inter_token_latency: between two tokens of one answer.
    """

    completed: int = 0
    cancelled: int = 0
    withdrawn: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    last: dict[str, Any] | None = None
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    first_token_latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    inter_token_latency: LatencyHistogram = field(default_factory=LatencyHistogram)

    def completed_one(self, figures: GenerationFigures, *, queue_seconds: float) -> None:
        """Count an answer that reached its end after waiting `queue_seconds` for its turn."""
        self.completed += 1
        self.prompt_tokens += figures.prompt_tokens
        self.completion_tokens += figures.completion_tokens
        self.first_token_seconds += figures.first_token_seconds
        self.decode_seconds += figures.decode_seconds
        self.decode_steps += max(0, figures.completion_tokens - 1)
        self.last = {
            "prompt_tokens": figures.prompt_tokens,
            "completion_tokens": figures.completion_tokens,
            "queue_seconds": queue_seconds,
            "time_to_first_token_seconds": queue_seconds + figures.first_token_seconds,
            "prompt_tokens_per_second": figures.prompt_tokens_per_second,
            "decode_tokens_per_second": figures.decode_tokens_per_second,
            "looked_ahead_tokens": figures.looked_ahead,
            "expert_hit_rate": figures.hit_rate,
            "expert_bytes_read": figures.bytes_read,
            "expert_read_seconds": figures.read_seconds,
            "expert_wait_seconds": figures.wait_seconds,
        }

    @property
    def prompt_tokens_per_second(self) -> float:
        """Mean prefill speed over completed answers, first tokens included; 0 before the first."""
        return self.prompt_tokens / self.first_token_seconds if self.first_token_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Mean decode speed over completed answers, without their first tokens; 0 before it is known."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds > 0 else 0.0
