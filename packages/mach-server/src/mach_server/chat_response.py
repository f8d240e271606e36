"""Owns the bodies and stream chunks of `/v1/chat/completions`; knows neither the engine nor HTTP."""

from __future__ import annotations

import secrets
import time
from typing import Literal

import msgspec

from mach_decode.request import FinishReason, GenerationFigures

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """No prompt token is taken from a cache yet."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Token counts; the end token counts as a completion token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, figures: GenerationFigures) -> Usage:
        """The usage of one answer."""
        return cls(
            prompt_tokens=figures.prompt_tokens,
            completion_tokens=figures.completion_tokens,
            total_tokens=figures.prompt_tokens + figures.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(),
        )


class AnswerMessage(msgspec.Struct, kw_only=True):
    """The assistant's message."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(msgspec.Struct, kw_only=True):
    """The one choice of an answer."""

    message: AnswerMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, kw_only=True):
    """The one choice of a chunk."""

    delta: Delta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One event of a stream; `usage` is absent unless asked for, and null in all chunks but the last."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class ChatAnswer:
    """Writes one answer, whole or in chunks, under one id."""

    def __init__(self, model: str, system_fingerprint: str, *, include_usage: bool = False) -> None:
        """Args: include_usage: whether the chunks have the key `usage`."""
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model, self._fingerprint = model, system_fingerprint
        self._include_usage = include_usage

    def whole(self, text: str, reason: FinishReason, figures: GenerationFigures) -> bytes:
        """The body of an answer that was not streamed."""
        return msgspec.json.encode(
            ChatCompletion(
                id=self.id,
                created=self._created,
                model=self._model,
                system_fingerprint=self._fingerprint,
                choices=[Choice(message=AnswerMessage(content=text), finish_reason=reason)],
                usage=Usage.of(figures),
            )
        )

    def role_chunk(self) -> bytes:
        """The first event."""
        return self._event([ChunkChoice(delta=Delta(role="assistant", content=""))])

    def text_chunk(self, text: str) -> bytes:
        """An event that adds `text`."""
        return self._event([ChunkChoice(delta=Delta(content=text))])

    def last_chunks(self, reason: FinishReason, figures: GenerationFigures) -> bytes:
        """The finish reason, the usage if it was asked for, and the end mark."""
        end = self._event([ChunkChoice(delta=Delta(), finish_reason=reason)])
        return end + (self._event([], Usage.of(figures)) if self._include_usage else b"") + DONE

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self.id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage if self._include_usage else msgspec.UNSET,
        )
        return event_of(msgspec.json.encode(chunk))


def event_of(payload: bytes) -> bytes:
    """A server-sent event that carries `payload`, which holds no newline."""
    return b"data: " + payload + b"\n\n"
