"""Owns one running answer: prefill chunk by chunk, then one token per step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from mach_decode.errors import PromptTooLongError, SamplingError
from mach_decode.request import FinishReason, GenerationFigures, GenerationRequest, StepEvent
from mach_decode.sampling import choose
from mach_decode.stop_strings import StopStrings
from mach_decode.text_stream import text_stream
from mach_store.counters import LayerCounters

if TYPE_CHECKING:
    from mach_decode.engine import Engine


class Generation:
    """The state of one answer. `step` until an event has a finish reason.

    Attributes:
        tokens: generated so far, the end token included.
        finished: whether the last event has been given.
    """

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        """Check the request; nothing is computed yet.

        Raises:
            PromptTooLongError: prompt and one token do not fit into the context.
            SamplingError: the prompt is empty or names an unknown token, max_tokens is not positive, or a
                stop string is empty.
        """
        if not request.prompt:
            raise SamplingError("prompt", "is empty: at least one token is needed")
        if not 0 <= min(request.prompt) <= max(request.prompt) < engine.vocabulary_size:
            raise SamplingError("prompt", f"holds a token outside 0…{engine.vocabulary_size - 1}")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise SamplingError("max_tokens", f"must be at least 1, not {request.max_tokens}")
        if "" in request.stop:
            raise SamplingError("stop", "holds an empty string, which would end every answer: leave it out")
        room = engine.context_length - len(request.prompt)
        if room < 1:
            raise PromptTooLongError(len(request.prompt), engine.context_length)
        self.request = request
        self.tokens: list[int] = []
        self.finished = False
        self._engine = engine
        self._limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self._cache: list[Any] = engine.kv_caches.make()
        self._prefilled = 0
        self._text = text_stream(engine.tokenizer)
        self._stops = StopStrings(request.stop)
        self._ahead: mx.array | None = None
        self._seen = set(request.prompt)
        self._counters_before: LayerCounters = engine.store.totals()
        self._began = time.perf_counter()
        self._first_token = self._last_token = 0.0

    def step(self) -> StepEvent:
        """Process one chunk of the prompt, or generate one token."""
        assert not self.finished, "a finished generation is not stepped"
        if self._prefilled < len(self.request.prompt) - 1:
            return self._prefill_chunk()
        token = self._next_token()
        if token in self._engine.end_tokens:
            return self._finish("stop", token, self._flush())
        text = self._stops.feed(self._text.feed(token))
        if self._stops.found is not None:
            return self._finish("stop", token, text)
        if len(self.tokens) >= self._limit:
            return self._finish("length", token, text + self._flush())
        return StepEvent(text=text, token=token, prefilled=self._prefilled)

    def _prefill_chunk(self) -> StepEvent:
        """All prompt tokens but the last: the first decode step takes that, and alone makes logits."""
        prompt = self.request.prompt
        end = min(self._prefilled + self._engine.prefill_chunk, len(prompt) - 1)
        self._engine.model(mx.array([prompt[self._prefilled : end]]), cache=self._cache)
        self._engine.kv_caches.evaluate(self._cache)
        self._prefilled = end
        return StepEvent(prefilled=end)

    def _next_token(self) -> int:
        prompt, made = self.request.prompt, len(self.tokens)
        chosen = self._ahead
        if chosen is None:
            chosen = self._choose_after(mx.array(self.tokens[-1] if made else prompt[-1]), made)
        self._prefilled, self._ahead = len(prompt), None
        ahead = made + 1 < self._limit and self._can_look_ahead()
        if ahead and made:
            # The next pass is queued before this token is known to the host, which so never keeps the device
            # waiting. After an end token it is thrown away.
            self._queue_after(chosen, made + 1)
        token = cast(int, chosen.item())
        self._last_token = time.perf_counter()
        if not made:
            self._first_token = self._last_token
            if ahead:  # only now: the first token should not wait for the second
                self._queue_after(chosen, 1)
        self.tokens.append(token)
        self._seen.add(token)
        return token

    def _queue_after(self, last: mx.array, made: int) -> None:
        self._ahead = self._choose_after(last, made)
        mx.async_eval(self._ahead)  # type: ignore[no-untyped-call]

    def _choose_after(self, last: mx.array, made: int) -> mx.array:
        """The token after `last`, when `made` tokens have been generated before it; not evaluated."""
        prompt, sampling = self.request.prompt, self.request.sampling
        logits = self._engine.model(last.reshape(1, 1), cache=self._cache)[0, -1]
        return choose(logits, sampling, len(prompt) + made, self._seen)

    def _can_look_ahead(self) -> bool:
        """Whether a pass can be built without the host: no expert to read, no earlier token to look at."""
        return self._engine.store.host_free and self.request.sampling.repetition_penalty == 1.0

    def _flush(self) -> str:
        return self._stops.feed(self._text.finish()) + self._stops.flush()

    def _finish(self, reason: FinishReason, token: int, text: str) -> StepEvent:
        self.finished = True
        if self._stops.found is not None:
            reason = "stop"
        return StepEvent(
            text=text,
            token=token,
            prefilled=self._prefilled,
            finish_reason=reason,
            figures=self._figures(),
        )

    def _figures(self) -> GenerationFigures:
        before, after = self._counters_before, self._engine.store.totals()
        return GenerationFigures(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=len(self.tokens),
            first_token_seconds=self._first_token - self._began,
            decode_seconds=self._last_token - self._first_token,
            expert_hits=after.hits - before.hits,
            expert_misses=after.misses - before.misses,
            bytes_read=after.bytes_read - before.bytes_read,
            read_seconds=after.read_seconds - before.read_seconds,
        )
