"""Owns the choice of compressed entries that a query attends to (the paper's lightning indexer)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mach_store.deepseek_v4.compressor import GroupCompressor
from mach_store.deepseek_v4.rope import turn

SCORE_ELEMENTS = 1 << 22
"""Scores that exist at once, in one array: 16 MB of float32."""


class Scorer(nn.Module):
    """Weighs the heads' scores; a module of its own because checkpoints name it so."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.weights_proj = nn.Linear(hidden, heads, bias=False)


class Indexer(GroupCompressor):
    """A small compressor over the same groups, whose entries are the keys that choose."""

    def __init__(
        self, hidden: int, q_rank: int, heads: int, dim: int, ratio: int, topk: int, eps: float
    ) -> None:
        """An indexer with `heads` queries of `dim` features that keeps `topk` entries."""
        super().__init__(hidden, dim, ratio, True, eps)
        self.heads, self.topk = heads, topk
        self.q_b_proj = nn.Linear(q_rank, heads * dim, bias=False)
        self.scorer = Scorer(hidden, heads)

    def choose(
        self, x: mx.array, q_residual: mx.array, turns: mx.array, keys: mx.array, closed: mx.array
    ) -> mx.array:
        """The entries with the highest scores, ascending by position.

        score(t, s) = Σ_h w_h(t) · ReLU(q_h(t) · k(s)), with w scaled by heads^-½ and q · k by dim^-½.

        Args:
            x: [n, hidden].
            q_residual: [n, q_rank].
            turns: the queries' angles, [n, rope_dim / 2].
            keys: [entries, dim], more entries than topk.
            closed: [n, 1] entries that each query may see.

        Returns:
            int64 [n, topk]; ids from `closed` on stand for nothing.
        """
        q = self.q_b_proj(q_residual).reshape(-1, self.heads, self.dim)
        q = turn(q, turns[:, None]) * self.dim**-0.5
        weights = self.scorer.weights_proj(x).astype(mx.float32) * self.heads**-0.5
        entries = keys.shape[0]
        rows = max(1, SCORE_ELEMENTS // (self.heads * entries))
        chosen = []
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            scores = mx.maximum((q[part] @ keys.T).astype(mx.float32), 0)
            scores = (weights[part][:, None] @ scores).squeeze(1)
            hidden = mx.arange(entries) >= closed[part]
            chosen.append(highest(mx.where(hidden, -mx.inf, scores), self.topk))
        return chosen[0] if len(chosen) == 1 else mx.concatenate(chosen)


def highest(scores: mx.array, k: int) -> mx.array:
    """Indices of the k greatest of scores [n, m] float32, ascending; of equal scores the first ones.

    ReLU makes equal scores (all zero) likely. Which of them is taken must not depend on m, or a prompt in one
    pass and the same prompt in two would differ. MLX promises no order among equals, so score and index make
    one integer, and no two are equal.
    """
    bits = (scores + 0.0).view(mx.int32)  # + 0.0: minus zero is zero
    ordered = mx.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(mx.int64)
    keys = mx.arange(scores.shape[-1], dtype=mx.int64) - ordered * (1 << 32)
    return mx.sort(mx.argpartition(keys, k - 1, axis=-1)[:, :k], axis=-1).astype(mx.int64)
