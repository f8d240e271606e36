"""Owns the turning of tokens into text as they come: what is given out joins up to the whole text."""

from __future__ import annotations

from typing import Any, Protocol

from tokenizers.decoders import DecodeStream


class TextStream(Protocol):
    """Tokens in, pieces of text out."""

    def feed(self, token: int) -> str:
        """Text that `token` completes; empty while a character's bytes are not all there."""

    def finish(self) -> str:
        """What is left: the replacement character for bytes that never became a character."""


def text_stream(tokenizer: Any) -> TextStream:
    """A stream for one answer.

    mlx-lm's own streaming detokenizer drops the first space of an answer, which a continuation needs, so the
    tokenizers library's is used wherever there is a fast tokenizer.

    Args:
        tokenizer: mlx-lm's wrapper of a Hugging Face tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _SlowStream(tokenizer.detokenizer) if backend is None else _FastStream(backend)


class _FastStream:
    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=False)
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        self._held.append(token)
        piece: str | None = self._stream.step(self._backend, token)
        if piece is None:
            return ""
        self._held.clear()
        return piece

    def finish(self) -> str:
        left: str = self._backend.decode(self._held, skip_special_tokens=False) if self._held else ""
        self._held.clear()
        return left


class _SlowStream:
    def __init__(self, detokenizer: Any) -> None:
        self._detokenizer = detokenizer

    def feed(self, token: int) -> str:
        self._detokenizer.add_token(token)
        piece: str = self._detokenizer.last_segment
        return piece

    def finish(self) -> str:
        self._detokenizer.finalize()
        piece: str = self._detokenizer.last_segment
        return piece
