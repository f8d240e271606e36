"""Owns one running answer: prefill chunk by chunk, then one token per step."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import mlx.core as mx

from mach_decode.errors import SamplingError
from mach_decode.logprobs import LogprobQueue, MeasuredLogprobs, TokenLogprob
from mach_decode.request import FinishReason, GenerationFigures, GenerationRequest, StepEvent
from mach_decode.sampling import choose
from mach_decode.stop_strings import StopStrings
from mach_decode.text_stream import text_stream
from mach_store.counters import LayerCounters

if TYPE_CHECKING:
    from mach_decode.engine import Engine

MEASURED_ROWS = 64
"""Prompt tokens whose logits are held at once: 64 rows of 151,936 are 39 MB."""


class Chosen(NamedTuple):
    """A token as a graph: a scalar, and its log-probabilities if they were asked for."""

    token: mx.array
    logprobs: MeasuredLogprobs | None

    def queue(self) -> None:
        """Let the device begin."""
        arrays = [self.token] if self.logprobs is None else [self.token, *self.logprobs.arrays]
        mx.async_eval(*arrays)  # type: ignore[no-untyped-call]


class Generation:
    """The state of one answer. `step` until an event has a finish reason.

    Attributes:
        tokens: generated so far, the end token included.
        finished: whether the last event has been given.
    """

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        """Check the request; nothing is computed yet.

        Raises:
            PromptTooLongError, KvBudgetError: prompt and answer do not fit into the context, or the memory.
            SamplingError: the prompt is empty or names an unknown token, as may logit_bias; max_tokens is too
                small, or a stop string is empty.
        """
        if not request.prompt:
            raise SamplingError("prompt", "is empty: at least one token is needed")
        if not 0 <= min(request.prompt) <= max(request.prompt) < engine.vocabulary_size:
            raise SamplingError("prompt", f"holds a token outside 0…{engine.vocabulary_size - 1}")
        unknown = [token for token, _ in request.sampling.logit_bias if token >= engine.vocabulary_size]
        if unknown:
            raise SamplingError(
                "logit_bias", f"holds the token {unknown[0]}; the last is {engine.vocabulary_size - 1}"
            )
        least = 1 if request.prompt_logprobs is None else 0
        if request.max_tokens is not None and request.max_tokens < least:
            raise SamplingError("max_tokens", f"must be at least {least}, not {request.max_tokens}")
        if "" in request.stop:
            raise SamplingError("stop", "holds an empty string, which would end every answer: leave it out")
        self._limit = engine.kv_budget.room(len(request.prompt), request.max_tokens)
        self.request = request
        self.tokens: list[int] = []
        self.finished = False
        self._engine = engine
        self._cache: list[Any] = engine.kv_caches.make()
        self._prefilled = 0
        self._text = text_stream(engine.tokenizer)
        self._stops = StopStrings(request.stop)
        self._ahead: Chosen | None = None
        self._looked_ahead = 0
        self._seen = set(request.prompt)
        self._answered: Counter[int] = Counter()
        self._queue = LogprobQueue()
        self._prompt_text = text_stream(engine.tokenizer)
        self._prompt_told, self._prompt_offset = request.prompt_logprobs is None, 0
        self._counters_before: LayerCounters = engine.store.totals()
        self._began = time.perf_counter()
        self._first_token = self._last_token = 0.0

    @property
    def prefilling(self) -> bool:
        """Whether the next step processes a chunk of the prompt."""
        return self._prefilled < len(self.request.prompt) - 1

    def step(self) -> StepEvent:
        """Process one chunk of the prompt, or generate one token."""
        assert not self.finished, "a finished generation is not stepped"
        if not self._prompt_told:
            self._prompt_told = True
            first = TokenLogprob(token=self.request.prompt[0], logprob=None)
            return StepEvent(prompt_logprobs=self._placed([first]))
        if self.prefilling:
            return self._prefill_chunk()
        if not self.tokens:
            self._engine.store.begin_decoding()
        if self._limit == 0:
            return self._finish("length", None, "")
        token, entry = self._next_token()
        if token in self._engine.end_tokens:
            return self._finish("stop", token, self._flush())
        piece = self._text.feed(token)
        if entry is not None:
            self._queue.feed(entry, len(piece))
        text = self._stops.feed(piece)
        if self._stops.found is not None:
            return self._finish("stop", token, text)
        if len(self.tokens) >= self._limit:
            return self._finish("length", token, text + self._flush())
        return StepEvent(
            text=text, token=token, prefilled=self._prefilled, logprobs=self._queue.release(len(text))
        )

    def _prefill_chunk(self) -> StepEvent:
        """All prompt tokens but the last: the first decode step takes that, and makes its own logits."""
        prompt, top = self.request.prompt, self.request.prompt_logprobs
        chunk = self._engine.prefill_chunk if top is None else min(self._engine.prefill_chunk, MEASURED_ROWS)
        begin, end = self._prefilled, min(self._prefilled + chunk, len(prompt) - 1)
        logits = self._engine.model(mx.array([prompt[begin:end]]), cache=self._cache)
        measured: tuple[TokenLogprob, ...] = ()
        if top is not None:
            following = mx.array(prompt[begin + 1 : end + 1])
            measured = self._placed(MeasuredLogprobs(logits[0], following, top).values())
        self._engine.kv_caches.evaluate(self._cache)
        self._take_in()
        self._prefilled = end
        return StepEvent(prefilled=end, prompt_logprobs=measured)

    def _placed(self, entries: list[TokenLogprob]) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of prompt tokens with the places of their text."""
        placed = []
        for entry in entries:
            placed.append(replace(entry, offset=self._prompt_offset))
            self._prompt_offset += len(self._prompt_text.feed(entry.token))
        return tuple(placed)

    def _next_token(self) -> tuple[int, TokenLogprob | None]:
        prompt, made = self.request.prompt, len(self.tokens)
        chosen = self._ahead
        if chosen is None:
            chosen = self._choose_after(mx.array(self.tokens[-1] if made else prompt[-1]), made)
        else:
            self._looked_ahead += 1
        self._prefilled, self._ahead = len(prompt), None
        ahead = made + 1 < self._limit and self._can_look_ahead()
        if ahead and made:
            # The next pass is queued before this token is known to the host, which so never keeps the device
            # waiting. After an end token it is thrown away.
            self._queue_after(chosen.token, made + 1)
        token = cast(int, chosen.token.item())
        self._take_in()
        entry = None
        if chosen.logprobs is not None:
            entry = replace(chosen.logprobs.values()[0], offset=self._queue.offset)
        self._last_token = time.perf_counter()
        if not made:
            self._first_token = self._last_token
            if ahead:  # only now: the first token should not wait for the second
                self._queue_after(chosen.token, 1)
        self.tokens.append(token)
        self._seen.add(token)
        if self.request.constraint is not None:
            self.request.constraint.accept(token)
        self._answered[token] += 1
        return token, entry

    def _take_in(self) -> None:
        """Let the store take in what was computed; a pass that is queued ahead is the next step's."""
        store = self._engine.store
        if self._ahead is None:
            store.quiesce()
        else:
            store.sync()

    def _queue_after(self, last: mx.array, made: int) -> None:
        self._ahead = self._choose_after(last, made)
        self._ahead.queue()

    def _choose_after(self, last: mx.array, made: int) -> Chosen:
        """The token after `last`, when `made` tokens have been generated before it; not evaluated."""
        prompt, sampling, top = self.request.prompt, self.request.sampling, self.request.logprobs
        logits = self._engine.model(last.reshape(1, 1), cache=self._cache)[0, -1]
        constraint = self.request.constraint
        mask = None if constraint is None else constraint.mask()
        token = choose(logits, sampling, len(prompt) + made, self._seen, answered=self._answered, mask=mask)
        measured = None if top is None else MeasuredLogprobs(logits[None], token[None], top)
        return Chosen(token, measured)

    def _can_look_ahead(self) -> bool:
        """Whether a pass can be built without the host: none of its layers asks it, nor does the choice."""
        request = self.request
        constraint = request.constraint
        looks_back = request.sampling.looks_back or (constraint is not None and not constraint.free_ahead)
        return self._engine.store.decodes_ahead and not looks_back

    def _flush(self) -> str:
        return self._stops.feed(self._text.finish()) + self._stops.flush()

    def _finish(self, reason: FinishReason, token: int | None, text: str) -> StepEvent:
        self.finished = True
        if not self.tokens:
            self._first_token = self._last_token = time.perf_counter()
        entries = self._queue.release(len(text))
        if self._stops.found is not None:
            reason = "stop"
        else:
            entries += self._queue.flush()
        return StepEvent(
            text=text,
            token=token,
            prefilled=self._prefilled,
            finish_reason=reason,
            stop=self._stops.found,
            figures=self._figures(),
            logprobs=entries,
        )

    def _figures(self) -> GenerationFigures:
        counted = self._engine.store.totals().since(self._counters_before)
        return GenerationFigures(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=len(self.tokens),
            first_token_seconds=self._first_token - self._began,
            decode_seconds=self._last_token - self._first_token,
            expert_hits=counted.hits,
            expert_misses=counted.misses,
            bytes_read=counted.bytes_read,
            read_seconds=counted.read_seconds,
            wait_seconds=counted.wait_seconds,
            prefetched=counted.prefetched,
            prefetch_used=counted.prefetch_used,
            looked_ahead=self._looked_ahead,
        )
