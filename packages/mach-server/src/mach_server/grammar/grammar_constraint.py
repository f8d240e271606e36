"""Owns one request's constraint: what decoding asks before, and tells after, each token."""

from __future__ import annotations

from mach_server.grammar.backend import CompiledGrammar, Mask, new_mask
from mach_server.grammar.errors import GrammarDeadEndError


class GrammarConstraint:
    """A `mach_decode.token_constraint.TokenConstraint` that follows a grammar. Belongs to one generation."""

    def __init__(self, grammar: CompiledGrammar, vocabulary_size: int) -> None:
        """Begin at the grammar's beginning.

        Args:
            grammar: shared with other requests; not changed.
            vocabulary_size: tokens that the model scores.
        """
        self._matcher = grammar.matcher()
        self._mask = new_mask(vocabulary_size)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: an end token was accepted."""
        return self._matcher.is_terminated()

    @property
    def free_ahead(self) -> bool:
        """Every token matters to a grammar."""
        return False

    def mask(self) -> Mask:
        """The tokens that may come next; valid until the next call.

        Raises:
            GrammarDeadEndError: there is none.
        """
        self._matcher.fill(self._mask)
        if not self._mask.any():
            raise GrammarDeadEndError("the grammar allows no token here: its form cannot be completed")
        mask: Mask = self._mask
        return mask

    def accept(self, token: int) -> None:
        """`token` was chosen.

        Raises:
            GrammarDeadEndError: it was not allowed.
        """
        if not self._matcher.accept(token):
            raise GrammarDeadEndError(f"token {token} was chosen, which the grammar does not allow")

    def rollback(self, tokens: int) -> None:
        """Take the last tokens back, as speculative decoding does."""
        self._matcher.rollback(tokens)
