"""Masks over logits: every token, every padding, every dtype."""

import mlx.core as mx
import numpy as np
import pytest

from mach_decode.token_constraint import apply_bitmask


def mask_of(allowed: set[int], words: int) -> np.ndarray:
    mask = np.zeros(words, dtype=np.int64)
    for token in allowed:
        mask[token // 32] |= 1 << (token % 32)
    return mask.astype(np.uint32).view(np.int32)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("vocabulary", [31, 32, 33, 64, 100])
def test_just_the_allowed_tokens_keep_their_logits(vocabulary: int, dtype: mx.Dtype) -> None:
    allowed = {0, 5, 30, vocabulary - 1}
    logits = mx.arange(vocabulary).astype(dtype)
    result = apply_bitmask(logits, mask_of(allowed, (vocabulary + 31) // 32))
    assert result.dtype == dtype
    for token, value in enumerate(result.tolist()):
        assert value == (logits[token].item() if token in allowed else -float("inf"))


def test_tokens_beyond_the_mask_are_forbidden_and_bits_beyond_the_logits_ignored() -> None:
    full = np.full(1, -1, dtype=np.int32)
    assert apply_bitmask(mx.zeros(40), full).tolist() == [0.0] * 32 + [-float("inf")] * 8
    assert apply_bitmask(mx.zeros(20), full).tolist() == [0.0] * 20


def test_every_row_of_logits_gets_the_mask() -> None:
    result = apply_bitmask(mx.zeros((2, 3, 32)), mask_of({31}, 1))
    assert result.shape == (2, 3, 32)
    assert (result == 0).sum().item() == 6


def test_the_mask_may_be_overwritten_afterwards() -> None:
    mask = mask_of({1}, 1)
    result = apply_bitmask(mx.zeros(32), mask)
    mask[:] = 0
    assert mx.argmax(result).item() == 1
