"""Owns what a library for constrained decoding must offer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from mach_server.grammar.shapes import Shape

Mask = npt.NDArray[np.int32]
"""[⌈vocabulary / 32⌉]: bit i of word j says whether token 32 j + i may come next."""

MAX_SPACE = 16
"""White space characters in a row between JSON's tokens: enough to indent, and no way to stall."""


class Matcher(Protocol):
    """Where one answer is in its grammar. Belongs to one request and one thread at a time."""

    def fill(self, mask: Mask) -> None:
        """Write the tokens that may come next. Not to be asked once terminated.

        Raises:
            GrammarDeadEndError: the grammar has become too complex to say.
        """

    def accept(self, token: int) -> bool:
        """Go on by one token; False, and nothing changes, for one that is not allowed."""

    def rollback(self, tokens: int) -> None:
        """Take the last tokens back; at most as many as were accepted."""

    def is_terminated(self) -> bool:
        """Whether an end token has been accepted."""


class CompiledGrammar(Protocol):
    """A shape in a form that makes masks quickly. Immutable, and shared by requests.

    Attributes:
        size_bytes: memory it takes, as reported or estimated.
    """

    size_bytes: int

    def matcher(self) -> Matcher:
        """A matcher at the beginning, independent of all others."""


class GrammarBackend(Protocol):
    """A library, with one model's vocabulary.

    Attributes:
        name: of the library.
    """

    name: str

    def compile(self, shape: Shape, *, param: str) -> CompiledGrammar:
        """Compile; takes from below a millisecond to seconds, and does not hold the interpreter's lock.

        Raises:
            GrammarRefusedError: the library cannot; `param` is the request's field for the message.
        """


def new_mask(vocabulary_size: int) -> Mask:
    """A mask for `vocabulary_size` tokens, nothing allowed."""
    return np.zeros((vocabulary_size + 31) // 32, dtype=np.int32)
