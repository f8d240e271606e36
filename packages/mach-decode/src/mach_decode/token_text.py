"""Owns what one token says by itself, in bytes: log-probabilities tell tokens one by one."""

from __future__ import annotations

import json
from typing import Any


class TokenTexts:
    """The bytes of single tokens. Safe to use from any thread: it only reads the tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Args: tokenizer: mlx-lm's wrapper of a Hugging Face tokenizer."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend
        self._control: dict[int, Any] = {} if backend is None else backend.get_added_tokens_decoder()
        kinds = set() if backend is None else _decoder_kinds(backend.decoder)
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds

    def bytes_of(self, token: int) -> bytes:
        """The bytes that `token` adds in the middle of a text; none for an id without a token."""
        if self._backend is None:
            return str(self._tokenizer.decode([token])).encode()
        if token in self._control:
            return str(self._control[token].content).encode()
        piece: str | None = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level and all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        if self._byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def text_of(self, token: int) -> str:
        """The same as text; the replacement character stands for parts of characters."""
        return self.bytes_of(token).decode(errors="replace")


def _decoder_kinds(decoder: Any) -> set[str]:
    """The names of the decoders that the tokenizers library would run."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {state["type"], *(part["type"] for part in state.get("decoders", ()))}


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


_BYTES = _byte_characters()
