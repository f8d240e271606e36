"""Owns a layer's experts block: which experts a token goes to, with what weight, and the shared expert."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchGLU

from mach.io.deepseek_v4_config import DeepseekV4Config, LayerPlan


class ClampedSwiGLU(nn.Module):
    """silu(gate) · up, with gate bounded from above and up on both sides."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def __call__(self, up: mx.array, gate: mx.array) -> mx.array:
        """(up, gate), in the order of mlx-lm's activations."""
        hidden: mx.array = nn.silu(mx.minimum(gate, self.limit)) * mx.clip(up, -self.limit, self.limit)
        return hidden


class Router(nn.Module):
    """Scores for every expert, and the choice: by score and correction bias, or by the token itself."""

    def __init__(self, args: DeepseekV4Config, plan: LayerPlan) -> None:
        super().__init__()
        self.top_k, self.scoring, self.scaling = args.top_k, args.scoring, args.routed_scaling
        self.weight = 0.02 * mx.random.normal((args.experts, args.hidden_size))
        if plan.hashed:
            # Until a checkpoint brings its own table: tokens over experts, evenly.
            spread = mx.arange(args.vocab_size)[:, None] * args.top_k + mx.arange(args.top_k)
            self.tid2eid = spread % args.experts
        else:
            self.e_score_correction_bias = mx.zeros((args.experts,))

    def __call__(self, x: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """Expert ids and weights, [n, top_k] each.

        The correction bias decides who is chosen, and is in no weight.

        Args:
            x: [n, hidden].
            tokens: [n] ids of the vocabulary, in range.
        """
        scores = self._scores(x)
        if "tid2eid" in self:
            chosen = self.tid2eid[tokens]
        else:
            ranked = scores + self.e_score_correction_bias
            chosen = mx.argpartition(-ranked, self.top_k - 1, axis=-1)[:, : self.top_k]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20) * self.scaling
        return chosen, weights.astype(x.dtype)

    def ranking(self, x: mx.array) -> mx.array:
        """What experts are chosen by, the highest first, [n, experts] float32; not of a hashed layer."""
        ranked: mx.array = self._scores(x) + self.e_score_correction_bias
        return ranked.astype(mx.float32)

    def _scores(self, x: mx.array) -> mx.array:
        logits = x.astype(mx.float32) @ self.weight.astype(mx.float32).T
        scores: mx.array = _SCORES[self.scoring](logits)
        return scores


_SCORES = {
    "sqrtsoftplus": lambda logits: mx.sqrt(nn.softplus(logits)),
    "sigmoid": mx.sigmoid,
}


class SharedExpert(nn.Module):
    """The expert that every token goes to."""

    def __init__(self, args: DeepseekV4Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.expert_width, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, args.expert_width, bias=False)
        self.down_proj = nn.Linear(args.expert_width, args.hidden_size, bias=False)
        self.activation = ClampedSwiGLU(args.swiglu_limit)

    def __call__(self, x: mx.array) -> mx.array:
        """[n, hidden] → [n, hidden]."""
        hidden: mx.array = self.activation(self.up_proj(x), self.gate_proj(x))
        out: mx.array = self.down_proj(hidden)
        return out


class ExpertsBlock(nn.Module):
    """Routed and shared experts of one layer; `switch_mlp` is what a store takes the place of."""

    def __init__(self, args: DeepseekV4Config, plan: LayerPlan) -> None:
        super().__init__()
        self.gate = Router(args, plan)
        self.switch_mlp = SwitchGLU(
            args.hidden_size, args.expert_width, args.experts, activation=ClampedSwiGLU(args.swiglu_limit)
        )
        self.shared_experts = SharedExpert(args)

    def __call__(self, x: mx.array, tokens: mx.array) -> mx.array:
        """[n, hidden] and their token ids [n] → [n, hidden]."""
        chosen, weights = self.gate(x, tokens)
        routed = (self.switch_mlp(x, chosen) * weights[..., None]).sum(axis=-2)
        out: mx.array = routed + self.shared_experts(x)
        return out
