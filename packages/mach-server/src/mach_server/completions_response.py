"""Owns the bodies and stream chunks of `/v1/completions`; knows neither the engine nor HTTP."""

from __future__ import annotations

import secrets
import time
from typing import Literal

import msgspec

from mach_decode.logprobs import TokenLogprob
from mach_decode.token_text import TokenTexts
from mach_server.answer.events import TextDelta
from mach_server.answer_reader import AnswerPart
from mach_server.collected_answer import CollectedAnswer, FinishReason, Outcome
from mach_server.errors import ApiError
from mach_server.event_stream import DONE, data_event
from mach_server.token_logprobs import shown
from mach_server.usage import Usage


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """One entry per token in each list; null where nothing predicts the token, and without alternatives."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """The one choice of an answer, or what a chunk adds to it."""

    text: str
    finish_reason: FinishReason | None
    index: int = 0
    logprobs: CompletionLogprobs | None = None


class Completion(msgspec.Struct, kw_only=True):
    """A whole answer or a chunk: they have the same form."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class CompletionWriter:
    """Writes one answer, whole or in chunks, under one id."""

    def __init__(
        self,
        model: str,
        system_fingerprint: str,
        texts: TokenTexts,
        *,
        include_usage: bool = False,
        logprobs: bool = False,
    ) -> None:
        """Args: include_usage: whether the chunks have the key `usage`; logprobs: whether tokens are told."""
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model, self._fingerprint = model, system_fingerprint
        self._include_usage, self._logprobs, self._texts = include_usage, logprobs, texts
        self._prompt_entries: list[TokenLogprob] = []
        self._entries: list[TokenLogprob] = []
        self._echo, self._echoed = "", False

    def begin_with(self, prompt: str) -> None:
        """The prompt's text, which is to come before the answer."""
        self._echo = prompt

    def whole(self, answer: CollectedAnswer, outcome: Outcome) -> bytes:
        """The body of an answer that was not streamed."""
        self._prompt_entries, self._entries = answer.prompt_logprobs, answer.logprobs
        choice = self._choice(answer.text, outcome.reason)
        return msgspec.json.encode(self._completion([choice], Usage.of(outcome)))

    def begin(self, prompt_tokens: int) -> bytes:
        """Nothing: the echo waits for its log-probabilities."""
        return b""

    def part(self, part: AnswerPart) -> bytes:
        """A chunk, if there is text; the first one begins with the echo."""
        self._prompt_entries += part.prompt_logprobs
        self._entries += part.logprobs
        text = "".join(event.text for event in part.events if isinstance(event, TextDelta))
        return self._event([self._choice(text, None)]) if text else b""

    def end(self, outcome: Outcome) -> bytes:
        """The finish reason, the usage if it was asked for, and the end mark."""
        end = self._event([self._choice("", outcome.reason)])
        return end + (self._event([], Usage.of(outcome)) if self._include_usage else b"") + DONE

    def failed(self, error: ApiError) -> bytes:
        """An event with `error` in a chunk's place."""
        return data_event(error.body())

    def _choice(self, text: str, reason: FinishReason | None) -> CompletionChoice:
        """`text` with everything that has not been told yet before it."""
        echo = "" if self._echoed else self._echo
        self._echoed = True
        choice = CompletionChoice(text=echo + text, finish_reason=reason, logprobs=self._told())
        self._prompt_entries, self._entries = [], []
        return choice

    def _told(self) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        entries = [*self._prompt_entries, *self._entries]
        # Offsets count from the beginning of what the client gets, the echo included.
        shifts = [0] * len(self._prompt_entries) + [len(self._echo)] * len(self._entries)
        return CompletionLogprobs(
            tokens=[self._texts.text_of(entry.token) for entry in entries],
            token_logprobs=[None if entry.logprob is None else shown(entry.logprob) for entry in entries],
            top_logprobs=[self._alternatives(entry) for entry in entries],
            text_offset=[entry.offset + shift for entry, shift in zip(entries, shifts, strict=True)],
        )

    def _alternatives(self, entry: TokenLogprob) -> dict[str, float] | None:
        """Text → log-probability, the token itself among them; of those with one text the likeliest."""
        if not entry.top:
            return None
        told: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            told.setdefault(self._texts.text_of(token), shown(logprob))
        return told

    def _event(self, choices: list[CompletionChoice], usage: Usage | None = None) -> bytes:
        shown_usage = usage if self._include_usage else msgspec.UNSET
        return data_event(msgspec.json.encode(self._completion(choices, shown_usage)))

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None | msgspec.UnsetType
    ) -> Completion:
        return Completion(
            id=self.id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )
