"""Owns the normalisation whose weights may be wider than what it normalises."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class Norm(nn.RMSNorm):
    """RMSNorm that returns its input's dtype.

    Checkpoints keep these weights in float32, which would otherwise widen every activation behind them.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """[..., dim] → [..., dim]."""
        normed: mx.array = super().__call__(x)
        return normed.astype(x.dtype)
