"""Owns a layer's attention: window, compressed entries, sinks, and the grouped output projection."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mach.io.deepseek_v4_config import DeepseekV4Config, LayerPlan
from mach_store.deepseek_v4.cache import CompressedCache
from mach_store.deepseek_v4.compressor import GroupCompressor
from mach_store.deepseek_v4.indexer import SCORE_ELEMENTS, Indexer
from mach_store.deepseek_v4.norm import Norm
from mach_store.deepseek_v4.rope import RotaryAngles, turn

GATHERED_ELEMENTS = 1 << 23
"""Elements of keys that are gathered for single queries at once: 32 MB of float32."""


class Compressor(GroupCompressor):
    """A layer's compressor, and its indexer where it has one."""

    def __init__(self, args: DeepseekV4Config, plan: LayerPlan) -> None:
        super().__init__(args.hidden_size, args.head_dim, plan.ratio, plan.indexed, args.norm_eps)
        if plan.indexed:
            self.indexer = Indexer(
                args.hidden_size,
                args.q_lora_rank,
                args.index_heads,
                args.index_head_dim,
                plan.ratio,
                args.index_topk,
                args.norm_eps,
            )


class Attention(nn.Module):
    """Many query heads over one key head, whose keys are the values too.

    Values therefore carry a rotation by their position; turning the output back by the query's leaves one by
    the distance of the two.
    """

    def __init__(self, args: DeepseekV4Config, plan: LayerPlan) -> None:
        super().__init__()
        self.plan, self.heads, self.groups = plan, args.num_heads, args.o_groups
        self.eps, self.scale = args.norm_eps, args.head_dim**-0.5
        features = args.num_heads * args.head_dim
        self.q_a_proj = nn.Linear(args.hidden_size, args.q_lora_rank, bias=False)
        self.q_a_norm = Norm(args.q_lora_rank, eps=args.norm_eps)
        self.q_b_proj = nn.Linear(args.q_lora_rank, features, bias=False)
        self.kv_proj = nn.Linear(args.hidden_size, args.head_dim, bias=False)
        self.kv_norm = Norm(args.head_dim, eps=args.norm_eps)
        # Each group's rows multiply that group's features alone: see `grouped`.
        self.o_a_proj = nn.Linear(features // args.o_groups, args.o_groups * args.o_lora_rank, bias=False)
        self.o_b_proj = nn.Linear(args.o_groups * args.o_lora_rank, args.hidden_size, bias=False)
        self.sinks = mx.zeros((args.num_heads,))
        if plan.ratio:
            self.compressor = Compressor(args, plan)

    def __call__(self, x: mx.array, cache: CompressedCache, angles: RotaryAngles) -> mx.array:
        """Attention of the tokens x [n, hidden], which follow those in `cache`, to them and to each other."""
        count, first = x.shape[0], cache.offset
        turns = angles.at(first, count)
        q_residual = self.q_a_norm(self.q_a_proj(x))
        q = self.q_b_proj(q_residual).reshape(count, self.heads, -1)
        q = turn(mx.fast.rms_norm(q, None, self.eps), turns[:, None]) * self.scale
        window = cache.extend_window(turn(self.kv_norm(self.kv_proj(x)), turns))
        out = self._attend(x, q, q_residual, window, turns, cache, angles)
        out = turn(out, mx.conjugate(turns)[:, None])
        mixed = self.o_b_proj(grouped(self.o_a_proj, out.reshape(count, self.groups, -1)))
        # An open group is not looked at for many tokens, and the indexer's keys not before they are too many:
        # left to themselves they would pile up as graphs that nobody evaluates.
        kept: mx.array = mx.depends(mixed, cache.arrays)
        return kept

    def _attend(
        self,
        x: mx.array,
        q: mx.array,
        q_residual: mx.array,
        window: mx.array,
        turns: mx.array,
        cache: CompressedCache,
        angles: RotaryAngles,
    ) -> mx.array:
        """Queries q [n, heads, dim] over the window and what they may see of the compressed entries."""
        count, size = x.shape[0], cache.window_size
        for compressor, state in zip(self._compressors(), cache.groups, strict=True):
            compressor.compress(x, state, angles)
        entries = cache.groups[0].entries if cache.groups else None
        if entries is None or not entries.count:
            return attend(
                q, window, None if count == 1 else _recent(count, window.shape[0], size), self.sinks
            )
        rows = entries.rows()
        # A query sees the entries of groups that it or an earlier token completes.
        ends = mx.arange(cache.offset - count + 1, cache.offset + 1)
        closed = (ends // self.plan.ratio)[:, None]
        if not self.plan.indexed or entries.count <= self.compressor.indexer.topk:
            visible = None
            if count > 1:
                visible = mx.concatenate(
                    [_recent(count, window.shape[0], size), mx.arange(entries.count) < closed], axis=1
                )
            return attend(q, mx.concatenate([window, rows]), visible, self.sinks)
        keys = cache.groups[1].entries.rows()
        chosen = self.compressor.indexer.choose(x, q_residual, turns, keys, closed)
        if count == 1:
            return attend(q, mx.concatenate([window, rows[chosen[0]]]), None, self.sinks)
        return self._attend_chosen(q, window, rows, chosen, chosen < closed, size)

    def _attend_chosen(
        self, q: mx.array, window: mx.array, rows: mx.array, chosen: mx.array, valid: mx.array, size: int
    ) -> mx.array:
        """Each query over the keys of its own: the last `size` of the window, and the rows it has chosen."""
        count, keys = q.shape[0], window.shape[0]
        size = min(size, keys)
        step = max(1, GATHERED_ELEMENTS // ((size + chosen.shape[1]) * rows.shape[1]))
        parts = []
        for start in range(0, count, step):
            end = min(start + step, count)
            last = mx.arange(keys - count + start, keys - count + end)[:, None]
            recent = last - mx.arange(size - 1, -1, -1)
            visible = mx.concatenate([recent >= 0, valid[start:end]], axis=1)
            own = mx.concatenate([window[mx.maximum(recent, 0)], rows[chosen[start:end]]], axis=1)
            parts.append(attend(q[start:end], own, visible, self.sinks))
        return mx.concatenate(parts)

    def _compressors(self) -> tuple[GroupCompressor, ...]:
        if not self.plan.ratio:
            return ()
        return (self.compressor, self.compressor.indexer) if self.plan.indexed else (self.compressor,)


def _recent(count: int, keys: int, size: int) -> mx.array:
    """[count, keys] whether a query sees a key of the window: not a later one, and the last `size` alone."""
    distance = mx.arange(keys - count, keys)[:, None] - mx.arange(keys)
    return (distance >= 0) & (distance < size)


def attend(q: mx.array, keys: mx.array, visible: mx.array | None, sinks: mx.array) -> mx.array:
    """Softmax attention whose keys are the values, with a sink per head that takes weight and gives nothing.

    Args:
        q: [n, heads, dim], scaled.
        keys: [m, dim] for all queries, or [n, m, dim].
        visible: [n, m] booleans, or None if every query sees every key.
        sinks: [heads] logits.

    Returns:
        [n, heads, dim].
    """
    count, heads, _ = q.shape
    step = max(1, SCORE_ELEMENTS // (heads * keys.shape[-2]))
    if step < count:
        return mx.concatenate(
            [
                attend(
                    q[start : start + step],
                    keys if keys.ndim == 2 else keys[start : start + step],
                    None if visible is None else visible[start : start + step],
                    sinks,
                )
                for start in range(0, count, step)
            ]
        )
    scores = (q @ keys.swapaxes(-1, -2)).astype(mx.float32)
    if visible is not None:
        scores = mx.where(visible[:, None], scores, -mx.inf)
    sink = mx.broadcast_to(sinks.astype(mx.float32)[:, None], (count, heads, 1))
    weights = mx.softmax(mx.concatenate([scores, sink], axis=-1), axis=-1)[..., :-1]
    return weights.astype(q.dtype) @ keys


def grouped(linear: Any, x: mx.array) -> mx.array:
    """A block-diagonal product: x [n, groups, in] by the rows of `linear` that belong to each group.

    Args:
        linear: nn.Linear or nn.QuantizedLinear with weight [groups · out, in…].
        x: one row per token and group.

    Returns:
        [n, groups · out].
    """
    groups = x.shape[1]

    def split(parameter: mx.array) -> mx.array:
        return parameter.reshape(groups, -1, parameter.shape[-1])

    rows = x.swapaxes(0, 1)
    if "scales" in linear:
        biases = linear.get("biases")
        y = mx.quantized_matmul(
            rows,
            split(linear.weight),
            split(linear.scales),
            None if biases is None else split(biases),
            transpose=True,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    else:
        y = rows @ split(linear.weight).swapaxes(-1, -2)
    return y.swapaxes(0, 1).reshape(x.shape[0], -1)
