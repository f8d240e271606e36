"""Owns what a caller asks of the engine, and what the engine says while it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mach_decode.logprobs import TokenLogprob
from mach_decode.sampling import SamplingParams
from mach_decode.token_constraint import TokenConstraint

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to continue it.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: tokens to generate at most; None is as many as the context holds. 0, which only measures
            the prompt, needs `prompt_logprobs`.
        stop: strings that end the answer and are not part of it.
        sampling: how tokens are chosen.
        logprobs: how many of the likeliest tokens to tell for each token of the answer (0 tells the token's
            own log-probability alone); None measures nothing.
        prompt_logprobs: the same for each token of the prompt.
        constraint: says which tokens may come next; made for this request, and used up by it.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: TokenConstraint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFigures:
    """What one answer cost.

    Attributes:
        prompt_tokens: tokens in the prompt.
        completion_tokens: tokens generated, the end token included.
        first_token_seconds: from the start to the first token: the prompt's processing.
        decode_seconds: from the first token to the last.
        expert_hits: experts found in the bank, over both phases.
        expert_misses: experts read from disk because they were needed.
        prefetched: experts whose read was begun because they would probably be needed, rightly or not.
        prefetch_used: the misses whose read had been begun so.
        bytes_read: bytes read from disk.
        read_seconds: time spent in reads.
        wait_seconds: the part of the answer's time in which a forward pass stood still for a read.
        looked_ahead: tokens whose pass was queued before the token before them was known to the host.
    """

    prompt_tokens: int
    completion_tokens: int
    first_token_seconds: float
    decode_seconds: float
    expert_hits: int
    expert_misses: int
    bytes_read: int
    read_seconds: float
    wait_seconds: float = 0.0
    looked_ahead: int = 0
    prefetched: int = 0
    prefetch_used: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prefill speed, the first token's choice included."""
        return self.prompt_tokens / self.first_token_seconds if self.first_token_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode speed over the tokens after the first; 0 for a single token."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else 0.0

    @property
    def compute_seconds(self) -> float:
        """The answer's time without waiting for reads, over both phases."""
        return max(0.0, self.first_token_seconds + self.decode_seconds - self.wait_seconds)

    @property
    def hit_rate(self) -> float:
        """Part of the needed experts that were in the bank; 0 when none was needed."""
        needed = self.expert_hits + self.expert_misses
        return self.expert_hits / needed if needed else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What one step of a generation brought.

    Attributes:
        text: new text, possibly empty: bytes of a character or of a stop string may be held back.
        token: the token chosen in this step; None during prefill.
        prefilled: prompt tokens processed so far.
        finish_reason: set in the last event: `stop` (end token or stop string) or `length`.
        stop: the stop string that ended the answer, set in the last event.
        figures: set in the last event.
        logprobs: of the tokens that `text` consists of, if they were asked for; the end token and those that
            a stop string swallowed are left out.
        prompt_logprobs: of the prompt's tokens processed in this step, if they were asked for.
    """

    text: str = ""
    token: int | None = None
    prefilled: int = 0
    finish_reason: FinishReason | None = None
    stop: str | None = None
    figures: GenerationFigures | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
