"""Owns the residual streams: how a block's input is drawn from them, and how its output goes back.

Manifold-constrained hyper-connections: `hc_mult` streams instead of one residual. Everything that decides
about the mixing is float32.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mach.io.deepseek_v4_config import DeepseekV4Config


class HyperConnection(nn.Module):
    """The mixing around one block (attention or experts)."""

    def __init__(self, args: DeepseekV4Config) -> None:
        super().__init__()
        self.streams, self.iterations = args.hc_mult, args.hc_iterations
        self.eps, self.norm_eps = args.hc_eps, args.norm_eps
        rows = (2 + args.hc_mult) * args.hc_mult
        self.fn = 0.02 * mx.random.normal((rows, args.hc_mult * args.hidden_size))
        self.base = mx.zeros((rows,))
        self.scale = mx.ones((3,))

    def __call__(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """What a block reads, and how its output comes back.

        Args:
            streams: [n, hc_mult, hidden].

        Returns:
            The block's input [n, hidden]; per stream, how much of its output it gets [n, hc_mult, 1]; and the
            mixing of the old streams [n, hc_mult, hc_mult], new = mixing @ old.
        """
        n, hc = streams.shape[0], self.streams
        pre, post, comb = mx.split(_logits(streams, self.fn, self.norm_eps), [hc, 2 * hc], axis=-1)
        base = self.base.astype(mx.float32)
        scale = self.scale.astype(mx.float32)
        pre = mx.sigmoid(pre * scale[0] + base[:hc]) + self.eps
        post = 2 * mx.sigmoid(post * scale[1] + base[hc : 2 * hc])
        comb = (comb * scale[2] + base[2 * hc :]).reshape(n, hc, hc)
        comb = sinkhorn(mx.softmax(comb, axis=-1) + self.eps, self.iterations, self.eps)
        return collapse(pre, streams), post[..., None], comb.swapaxes(-1, -2)


class HyperHead(nn.Module):
    """The last drawing from the streams, before the final norm."""

    def __init__(self, args: DeepseekV4Config) -> None:
        super().__init__()
        self.eps, self.norm_eps = args.hc_eps, args.norm_eps
        self.hc_fn = 0.02 * mx.random.normal((args.hc_mult, args.hc_mult * args.hidden_size))
        self.hc_base = mx.zeros((args.hc_mult,))
        self.hc_scale = mx.ones((1,))

    def __call__(self, streams: mx.array) -> mx.array:
        """[n, hc_mult, hidden] → [n, hidden]."""
        logits = _logits(streams, self.hc_fn, self.norm_eps)
        pre = mx.sigmoid(logits * self.hc_scale.astype(mx.float32) + self.hc_base.astype(mx.float32))
        return collapse(pre + self.eps, streams)


def _logits(streams: mx.array, fn: mx.array, eps: float) -> mx.array:
    """The linear map of all streams of a token together, normed: [n, rows] float32."""
    flat = streams.reshape(streams.shape[0], -1).astype(mx.float32)
    return mx.fast.rms_norm(flat, None, eps) @ fn.astype(mx.float32).T


def collapse(weights: mx.array, streams: mx.array) -> mx.array:
    """Σ over streams of weights [n, hc_mult] · streams [n, hc_mult, hidden]."""
    return (weights[:, None] @ streams.astype(mx.float32)).squeeze(1).astype(streams.dtype)


def expand(output: mx.array, streams: mx.array, post: mx.array, mixing: mx.array) -> mx.array:
    """The streams after a block: its output, shared out, plus the old streams, mixed."""
    mixed = post * output[:, None].astype(mx.float32) + mixing @ streams.astype(mx.float32)
    return mixed.astype(streams.dtype)


def sinkhorn(matrix: mx.array, iterations: int, eps: float) -> mx.array:
    """[n, h, h] positive → nearly doubly stochastic: columns, then rows and columns iterations − 1 times."""
    matrix = matrix / (matrix.sum(axis=-2, keepdims=True) + eps)
    for _ in range(iterations - 1):
        matrix = matrix / (matrix.sum(axis=-1, keepdims=True) + eps)
        matrix = matrix / (matrix.sum(axis=-2, keepdims=True) + eps)
    return matrix
