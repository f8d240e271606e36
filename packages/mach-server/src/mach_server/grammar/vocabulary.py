"""Owns the bytes behind each token of a model, which is what grammars are matched against."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mach_server.errors import ServerError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WIRE = re.compile(
    r"</?think>|</?tool_call>|<\|?tool_call\|?>|<\|?channel\|?>|<\|\"\|>|<\|(start|message|constrain|end|call)\|>"
    r"|｜DSML｜|</?｜DSML｜.*"
)
"""Special tokens that are part of how answers are written, and so of grammars' texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A model's tokens.

    Attributes:
        tokens: the bytes of each; empty for one that no grammar may use: control tokens, and ids that the
            model has logits for but the tokenizer no token.
        end_tokens: ids that end an answer.
        encode: plain text → ids, from any thread.
    """

    tokens: tuple[bytes, ...]
    end_tokens: tuple[int, ...]
    encode: Callable[[str], list[int]]

    @property
    def size(self) -> int:
        """Tokens, those without bytes included."""
        return len(self.tokens)


class VocabularyError(ServerError):
    """The tokenizer is of an unknown kind, or has no end token: answers cannot be constrained."""


def vocabulary_of(backend_tokenizer: Any, *, logits: int, end_tokens: Collection[int]) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer.

    Args:
        backend_tokenizer: a `tokenizers.Tokenizer`.
        logits: how many tokens the model scores; the tokenizer may know fewer or more.
        end_tokens: ids that end an answer.

    Raises:
        VocabularyError: its decoder is neither byte-level nor SentencePiece's.
    """
    description = json.loads(backend_tokenizer.to_str())
    spell = _speller(description.get("decoder"))
    added = {entry["id"]: entry for entry in description.get("added_tokens", [])}
    tokens = [b""] * logits
    for text, number in backend_tokenizer.get_vocab(with_added_tokens=True).items():
        if not 0 <= number < logits or number in end_tokens:
            continue
        if number not in added:
            tokens[number] = spell(text)
        elif not added[number]["special"] or _WIRE.fullmatch(text):
            tokens[number] = text.encode()

    def encode(text: str) -> list[int]:
        ids: list[int] = backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    ends = tuple(sorted(token for token in end_tokens if token < logits))
    if not ends:
        raise VocabularyError("the tokenizer has no end token, so that no constrained answer could end")
    return Vocabulary(tokens=tuple(tokens), end_tokens=ends, encode=encode)


def _speller(decoder: Any) -> Any:
    """What turns a token's name into its bytes."""
    steps: Sequence[dict[str, Any]] = [decoder or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["decoders"]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _sentence_piece
    raise VocabularyError(
        f"the tokenizer's decoder ({', '.join(sorted(map(str, kinds)))}) is neither byte-level nor "
        "SentencePiece's"
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's 256 printable characters, each standing for a byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(text: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in text)
    except KeyError:
        return text.encode()  # a token that was added without the alphabet


def _sentence_piece(text: str) -> bytes:
    piece = _BYTE_PIECE.fullmatch(text)
    return bytes([int(piece[1], 16)]) if piece else text.replace("▁", " ").encode()
