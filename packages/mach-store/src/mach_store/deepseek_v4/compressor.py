"""Owns the pooling of groups of tokens into one entry each (the paper's CSA and HCA compressors)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mach_store.deepseek_v4.cache import GroupState, own_copy
from mach_store.deepseek_v4.norm import Norm
from mach_store.deepseek_v4.rope import RotaryAngles, turn


class GroupCompressor(nn.Module):
    """Every `ratio` tokens become one entry: a gated mean, feature by feature.

    With `overlap` there are two series of features. An entry then pools the second series of its own group
    and the first of the group before it, 2 · ratio rows; before the first group there is nothing.
    """

    def __init__(self, hidden: int, dim: int, ratio: int, overlap: bool, eps: float) -> None:
        """A compressor from `hidden` features to entries of `dim`."""
        super().__init__()
        self.ratio, self.dim, self.overlap = ratio, dim, overlap
        width = 2 * dim if overlap else dim
        self.kv_proj = nn.Linear(hidden, width, bias=False)
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.position_bias = mx.zeros((ratio, width))
        self.kv_norm = Norm(dim, eps=eps)

    def compress(self, x: mx.array, state: GroupState, angles: RotaryAngles) -> None:
        """Add tokens x [n, hidden] to `state`, and an entry for every group that they complete.

        Nothing that was compressed before is computed again.
        """
        taken = state.take(self.kv_proj(x), self.gate_proj(x), self.ratio)
        if taken is None:
            return
        values, gates = taken
        gates = gates + self.position_bias
        if self.overlap:
            values, gates = self._with_previous(values, gates, state)
        weights = mx.softmax(gates.astype(mx.float32), axis=1)
        pooled = (values * weights).sum(axis=1).astype(x.dtype)
        # An entry stands where its group begins.
        turns = angles.at(state.entries.count * self.ratio, pooled.shape[0], self.ratio)
        state.entries.append(turn(self.kv_norm(pooled), turns))

    def _with_previous(
        self, values: mx.array, gates: mx.array, state: GroupState
    ) -> tuple[mx.array, mx.array]:
        """[groups, ratio, 2 · dim] twice → [groups, 2 · ratio, dim] twice; the earlier rows first."""
        dim = self.dim
        earlier, own = values[..., :dim], values[..., dim:]
        earlier_gates, own_gates = gates[..., :dim], gates[..., dim:]
        if state.last_values is None:
            before = mx.zeros_like(earlier[:1])
            before_gates = mx.full(before.shape, -mx.inf, gates.dtype)  # no weight in the softmax
        else:
            assert state.last_gates is not None, "values and gates are kept together"
            before, before_gates = state.last_values[None], state.last_gates[None]
        state.last_values, state.last_gates = own_copy(earlier[-1]), own_copy(earlier_gates[-1])
        values = mx.concatenate([mx.concatenate([before, earlier[:-1]]), own], axis=1)
        gates = mx.concatenate([mx.concatenate([before_gates, earlier_gates[:-1]]), own_gates], axis=1)
        return values, gates
