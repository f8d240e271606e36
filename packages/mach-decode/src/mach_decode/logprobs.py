"""Owns log-probabilities of tokens: measured on the model's own distribution, given out with their text.

The distribution is the softmax of the logits as the model gave them: before biases, penalties, temperature,
truncation and constraints. That is what OpenAI documents and what evaluation harnesses compare.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token's log-probability, and those of the likeliest tokens in its place.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability; None for a prompt's first token: nothing
            predicts it.
        top: (token, logprob) of the most likely tokens, the likeliest first.
        offset: characters of the prompt's or the answer's text before this token's own.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    offset: int = 0


class MeasuredLogprobs:
    """Log-probabilities of chosen tokens, as a graph that need not be evaluated yet.

    Attributes:
        arrays: what has to be evaluated.
    """

    def __init__(self, logits: mx.array, tokens: mx.array, top: int) -> None:
        """Describe the measurement.

        Args:
            logits: [rows, vocabulary], any float dtype.
            tokens: [rows], integers.
            top: how many of the likeliest tokens to tell, 0 for none.
        """
        rows = logits.astype(mx.float32)
        total = mx.logsumexp(rows, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(rows, tokens[:, None], axis=-1) - total
        self.arrays = [tokens, chosen[:, 0]]
        top = min(top, rows.shape[-1])
        if top:
            ids = mx.argpartition(-rows, top - 1, axis=-1)[:, :top]
            values = mx.take_along_axis(rows, ids, axis=-1) - total
            order = mx.argsort(-values, axis=-1)
            self.arrays += [mx.take_along_axis(array, order, axis=-1) for array in (ids, values)]

    def values(self) -> list[TokenLogprob]:
        """One per row; waits for the device."""
        tokens, chosen, *top = (cast(list[Any], array.tolist()) for array in self.arrays)
        if not top:
            return [
                TokenLogprob(token=token, logprob=logprob)
                for token, logprob in zip(tokens, chosen, strict=True)
            ]
        return [
            TokenLogprob(token=token, logprob=logprob, top=tuple(zip(ids, values, strict=True)))
            for token, logprob, ids, values in zip(tokens, chosen, *top, strict=True)
        ]


class LogprobQueue:
    """Holds log-probabilities back until their tokens' text is given out.

    Text is held back for stop strings and unfinished characters; what never comes out keeps its
    log-probabilities too.
    """

    def __init__(self) -> None:
        self._entries: deque[TokenLogprob] = deque()
        self._fed = self._given = 0

    @property
    def offset(self) -> int:
        """Where the next token's text begins."""
        return self._fed

    def feed(self, entry: TokenLogprob, characters: int) -> None:
        """Add a token whose text (as far as it is known) has `characters`."""
        self._entries.append(entry)
        self._fed += characters

    def release(self, characters: int) -> tuple[TokenLogprob, ...]:
        """The tokens whose text begins in what has been given out, now that `characters` more were."""
        self._given += characters
        released = []
        while self._entries and self._entries[0].offset < self._given:
            released.append(self._entries.popleft())
        return tuple(released)

    def flush(self) -> tuple[TokenLogprob, ...]:
        """Everything held: the answer has ended, and no stop string swallowed its end."""
        left = tuple(self._entries)
        self._entries.clear()
        return left
