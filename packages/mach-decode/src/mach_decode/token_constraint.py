"""Owns what decoding asks of a constraint on its tokens, and the application of a mask to logits.

Who constrains, and how, is not known here: the server's grammars do it, through this protocol.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt


class TokenConstraint(Protocol):
    """Which tokens an answer may have next. One generation's, called from its thread alone.

    Before each choice `mask`, after it `accept`, until `finished`. A pass that is queued before a token is
    known to the host chooses the token after it only where `free_ahead` says that this needs no mask.
    """

    def mask(self) -> npt.NDArray[np.int32] | None:
        """[⌈vocabulary / 32⌉]: bit i of word j says whether token 32 j + i may be next; None is any token.

        The array may be overwritten by the next call. Not to be asked once finished.
        """

    def accept(self, token: int) -> None:
        """`token` was chosen."""

    @property
    def free_ahead(self) -> bool:
        """Whether the token after the next may be any, whatever the next one is; `mask` then gives None."""

    def rollback(self, tokens: int) -> None:
        """The last accepted tokens were not chosen after all."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: an end token was accepted, and no token may follow."""


def apply_bitmask(logits: mx.array, mask: npt.NDArray[np.int32]) -> mx.array:
    """Logits with those of forbidden tokens at minus infinity.

    Tokens beyond the mask's end are forbidden; bits beyond the last logit say nothing.

    Args:
        logits: [..., vocabulary], any float dtype.
        mask: as `TokenConstraint.mask` gives it; copied at once.

    Returns:
        [..., vocabulary], of the same dtype.
    """
    vocabulary = logits.shape[-1]
    words = mx.array(mask.view(np.uint32))
    bits = (words[:, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    allowed = bits.reshape(-1)[:vocabulary] != 0
    if allowed.size < vocabulary:
        allowed = mx.concatenate([allowed, mx.zeros(vocabulary - allowed.size, dtype=mx.bool_)])
    return mx.where(allowed, logits, mx.array(-mx.inf, dtype=logits.dtype))
