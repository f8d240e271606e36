"""Owns the bound on an answer's reasoning: when its tokens are used up, the closing tag must follow.

It reads the answer with the very parser that parts reasoning from text, so that what is counted here is what
the client sees as reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mach_decode.text_stream import TextStream
from mach_decode.token_constraint import TokenConstraint
from mach_server.answer.formats import ReasoningReader
from mach_server.grammar.backend import Mask


class ReasoningBudget:
    """A `mach_decode.token_constraint.TokenConstraint` that ends reasoning. Belongs to one generation."""

    def __init__(
        self,
        budget: int,
        closing: Sequence[int],
        text: Callable[[], TextStream],
        reader: Callable[[], ReasoningReader],
        *,
        vocabulary_size: int,
        inner: TokenConstraint | None = None,
    ) -> None:
        """Begin before the first token.

        Args:
            budget: tokens of reasoning, not counting tags.
            closing: the tokens of the closing tag.
            text: begins a text of tokens.
            reader: begins a reader of the answer's reasoning.
            vocabulary_size: tokens that the model scores.
            inner: what else constrains the answer; a closing tag that it forbids waits until it does not.
        """
        assert budget >= 1 and closing
        self._budget, self._closing, self._inner = budget, tuple(closing), inner
        self._begin_text, self._begin_reader = text, reader
        self._single = np.zeros(-(-vocabulary_size // 32), dtype=np.int32)
        self._tokens: list[int] = []
        self._start()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._inner is not None and self._inner.finished

    @property
    def free_ahead(self) -> bool:
        """See `TokenConstraint`."""
        if self._inner is not None and not self._inner.free_ahead:
            return False
        return self._spent + 1 < self._budget or not self._reader.may_reason

    def mask(self) -> Mask | None:
        """The tokens that may come next; None is any."""
        allowed = None if self._inner is None else self._inner.mask()
        if self._spent < self._budget or not self._reader.reasoning:
            return allowed
        token = self._closing[self._closed]
        word, bit = divmod(token, 32)
        if allowed is not None and not (int(allowed[word]) >> bit) & 1:
            return allowed
        self._single[:] = 0
        self._single.view(np.uint32)[word] = 1 << bit
        return self._single

    def accept(self, token: int) -> None:
        """`token` was chosen."""
        if self._inner is not None:
            self._inner.accept(token)
        self._tokens.append(token)
        self._read(token)

    def rollback(self, tokens: int) -> None:
        """Take the last tokens back."""
        if self._inner is not None:
            self._inner.rollback(tokens)
        kept = self._tokens[: len(self._tokens) - tokens]
        self._start()
        self._tokens = kept
        for token in kept:
            self._read(token)

    def _start(self) -> None:
        self._text, self._reader = self._begin_text(), self._begin_reader()
        self._spent = self._closed = 0

    def _read(self, token: int) -> None:
        was = self._reader.reasoning
        self._reader.feed(self._text.feed(token))
        if not self._reader.reasoning:
            self._closed = 0
        elif was and self._spent < self._budget:
            self._spent += 1
        elif was:
            # As far into the closing tag as its tokens have come one after another.
            self._closed = self._closed + 1 if token == self._closing[self._closed] else 0
            self._closed %= len(self._closing)
