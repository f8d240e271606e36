"""Owns the rotary embeddings: angles from absolute positions, and the turning of features by them."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mach.io.deepseek_v4_rope import Rope


class RotaryAngles:
    """Unit complex numbers by which positions turn features.

    They are made on the host from positions that the host knows: no array is read back, and no device's own
    cosine decides about positions in the hundred thousands.
    """

    def __init__(self, rope: Rope, dim: int) -> None:
        """Angles for `dim` features, two of which make one complex number."""
        self._frequencies = frequencies(rope, dim)
        self._amplitude = rope.amplitude
        # The layers of a pass ask for the same positions one after another.
        self._last: dict[int, tuple[int, int, mx.array]] = {}

    def at(self, first: int, count: int, step: int = 1) -> mx.array:
        """Complex [count, dim / 2] for positions first, first + step, …"""
        last = self._last.get(step)
        if last is not None and last[:2] == (first, count):
            return last[2]
        positions = np.arange(first, first + count * step, step).astype(np.float32)
        # float32 up to here, as everywhere that this model runs; only the functions are exact.
        angles = (positions[:, None] * self._frequencies).astype(np.float64)
        turns = mx.array((self._amplitude * np.exp(1j * angles)).astype(np.complex64))
        self._last[step] = (first, count, turns)
        return turns


def frequencies(rope: Rope, dim: int) -> np.ndarray:
    """Radians per position, float32 [dim / 2].

    YaRN (arXiv:2309.00071, eq. 17): fast frequencies are kept, slow ones divided by the factor, with a linear
    ramp between the dimensions that turn `beta_fast` and `beta_slow` times over the original context.
    """
    powers = np.float32(rope.theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    kept = np.float32(1.0) / powers
    if rope.factor == 1.0:
        return kept
    stretched = np.float32(1.0) / (np.float32(rope.factor) * powers)

    def dimension(turns: float) -> float:
        return dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(rope.beta_fast)), 0)
    high = min(math.ceil(dimension(rope.beta_slow)), dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / np.float32(width), 0, 1).astype(np.float32)
    mixed: np.ndarray = stretched * ramp + kept * (1 - ramp)
    return mixed.astype(np.float32)


def turn(x: mx.array, turns: mx.array) -> mx.array:
    """`x` with its trailing features turned, neighbours (2i, 2i + 1) together.

    Args:
        x: [..., dim].
        turns: complex, broadcastable to [..., rope_dim / 2]; its conjugate turns back.
    """
    rotated = 2 * turns.shape[-1]
    tail = x[..., -rotated:].astype(mx.float32)
    tail = (tail.view(mx.complex64) * turns).view(mx.float32).astype(x.dtype)
    return tail if rotated == x.shape[-1] else mx.concatenate([x[..., :-rotated], tail], axis=-1)
