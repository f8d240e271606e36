"""The model: a Qwen3-MoE transformer in plain PyTorch, written to train fast on one GPU.

Owns the forward pass. Tokens are sorted by expert and multiplied with one grouped matrix product per
projection. Weights come in through `Network.working`, in bfloat16 or rounded to 4 bits, so that the
compiled block is the same for ordinary and for quantisation-aware steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from quantisation import straight_through
from torch import Tensor, nn

Weights = dict[str, Tensor]
MATRICES = ("q", "k", "v", "o", "gate_up", "down")
"""Weights of a block that are stored in 4 bits; the router takes 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The model's dimensions."""

    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    key_heads: int = 2
    head_dim: int = 64
    experts: int = 32
    active: int = 4
    width: int = 256
    context: int = 2048
    theta: float = 10_000.0
    epsilon: float = 1e-6


def normed(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """RMS norm over the last axis, computed in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), None, epsilon).to(x.dtype) * weight.to(x.dtype)


class Spread(torch.autograd.Function):
    """Copy each token to its experts' places; backward adds without atomics."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, active: int) -> Tensor:
        """`x` [tokens, hidden] -> [tokens * active, hidden], sorted by expert."""
        ctx.save_for_backward(inverse)
        ctx.active = active
        return x[order // active]

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Sum the gradients of a token's copies."""
        (inverse,) = ctx.saved_tensors
        return grad[inverse].view(-1, ctx.active, grad.shape[-1]).sum(1), None, None, None


class Collect(torch.autograd.Function):
    """Undo the sorting by expert."""

    @staticmethod
    def forward(ctx, y: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """`y` sorted by expert -> in the order of tokens."""
        ctx.save_for_backward(order)
        return y[inverse]

    @staticmethod
    def backward(ctx, grad: Tensor):
        """A permutation's inverse is its transpose."""
        (order,) = ctx.saved_tensors
        return grad[order], None, None


def expert_products(x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    """SwiGLU of every expert over its slice of `x` [n, hidden]; expert e owns rows ends[e-1]:ends[e]."""
    width = down.shape[-1]
    if x.is_cuda:
        product = getattr(F, "grouped_mm", None) or torch._grouped_mm
        h = product(x, gate_up.transpose(1, 2), offs=ends)
        return product(F.silu(h[:, :width]) * h[:, width:], down.transpose(1, 2), offs=ends)
    starts = [0, *ends.tolist()]
    parts = []
    for expert in range(down.shape[0]):
        h = x[starts[expert] : starts[expert + 1]] @ gate_up[expert].t()
        parts.append((F.silu(h[:, :width]) * h[:, width:]) @ down[expert].t())
    return torch.cat(parts)


class Block(nn.Module):
    """One layer's parameters, float32."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, head = shape.hidden, shape.head_dim
        deep = 1 / math.sqrt(2 * shape.layers)

        def matrix(*size: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size) * 0.02 * scale)

        self.norm1, self.norm2 = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(head)), nn.Parameter(torch.ones(head))
        self.q, self.k = matrix(shape.heads * head, hidden), matrix(shape.key_heads * head, hidden)
        self.v, self.o = (
            matrix(shape.key_heads * head, hidden),
            matrix(hidden, shape.heads * head, scale=deep),
        )
        self.router = matrix(shape.experts, hidden)
        self.gate_up = matrix(shape.experts, 2 * shape.width, hidden)
        self.down = matrix(shape.experts, hidden, shape.width, scale=2 * deep)


def block_forward(
    x: Tensor, w: Weights, cos: Tensor, sin: Tensor, head_dim: int, active: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer. `x` [batch, length, hidden] -> (same, balance loss, share of routes per expert [experts]).

    The head counts follow from the weights; plain numbers rather than a Shape keep the compiler's guards
    simple.
    """
    batch, length, hidden = x.shape
    heads, key_heads, experts = w["q"].shape[0] // head_dim, w["k"].shape[0] // head_dim, w["router"].shape[0]
    h = normed(x, w["norm1"])
    qkv = F.linear(h, torch.cat([w["q"], w["k"], w["v"]])).view(batch, length, -1, head_dim)
    q, k, v = qkv.split([heads, key_heads, key_heads], 2)

    def turned(t: Tensor) -> Tensor:
        first, second = t.float().chunk(2, -1)
        return (
            torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
            .to(t.dtype)
            .transpose(1, 2)
        )

    q, k, v = turned(normed(q, w["q_norm"])), turned(normed(k, w["k_norm"])), v.transpose(1, 2)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + F.linear(attended.transpose(1, 2).reshape(batch, length, -1), w["o"])

    h = normed(x, w["norm2"]).view(batch * length, hidden)
    chances = F.linear(h, w["router"]).float().softmax(-1)
    weight, chosen = chances.topk(active, -1)
    weight = weight / weight.sum(-1, keepdim=True)
    expert, order = chosen.flatten().sort()
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    every = torch.arange(experts, device=expert.device, dtype=expert.dtype)
    ends = torch.searchsorted(expert, every, right=True).to(torch.int32)
    y = expert_products(Spread.apply(h, order, inverse, active), w["gate_up"], w["down"], ends)
    y = Collect.apply(y, order, inverse).view(batch * length, active, hidden)
    y = (y * weight.to(h.dtype)[..., None]).sum(1)
    share = torch.diff(ends, prepend=ends.new_zeros(1)).float() / order.numel()
    balance = experts * (share * chances.mean(0)).sum()
    return x + y.view(batch, length, hidden), balance, share


def weighted_loss(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy of `targets` [batch, length] in nats, each target counted by its weight."""
    logits = F.linear(normed(x, norm), embedding).flatten(0, 1).float()
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum().clamp(min=1)


class Network(nn.Module):
    """The whole model. `block` and `loss` may be replaced by compiled versions of the functions above."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.hidden) * 0.02)
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.block: Callable[..., tuple[Tensor, Tensor, Tensor]] = block_forward
        self.loss: Callable[..., Tensor] = weighted_loss
        self.round: Callable[[Tensor, int], Tensor] = straight_through
        inverse = shape.theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(shape.context).float(), inverse)
        self.register_buffer("cos", angles.cos()[None, :, None])
        self.register_buffer("sin", angles.sin()[None, :, None])

    def working(self, *, quantised: bool) -> tuple[Tensor, list[Weights]]:
        """(embedding, weights of each block) in bfloat16, rounded to 4 bits (router: 8) if `quantised`."""

        def ready(weight: Tensor, bits: int) -> Tensor:
            return self.round(weight, bits) if quantised else weight.to(torch.bfloat16)

        blocks = []
        for block in self.blocks:
            weights = dict(block.named_parameters())
            weights |= {name: ready(weights[name], 4) for name in MATRICES}
            weights["router"] = ready(weights["router"], 8)
            blocks.append(weights)
        return ready(self.embedding, 4), blocks

    def hidden(self, ids: Tensor, embedding: Tensor, blocks: list[Weights]) -> tuple[Tensor, Tensor, Tensor]:
        """`ids` [batch, length] -> (last hidden states, balance loss, route shares [layers, experts])."""
        x = F.embedding(ids, embedding)
        cos, sin = self.cos[:, : ids.shape[1]], self.sin[:, : ids.shape[1]]
        balances, shares = [], []
        for weights in blocks:
            x, balance, share = self.block(x, weights, cos, sin, self.shape.head_dim, self.shape.active)
            balances.append(balance)
            shares.append(share)
        return x, torch.stack(balances).mean(), torch.stack(shares)

    def forward(
        self, ids: Tensor, targets: Tensor, weights: Tensor, *, quantised: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss in nats, balance loss, route shares)."""
        embedding, blocks = self.working(quantised=quantised)
        x, balance, shares = self.hidden(ids, embedding, blocks)
        return self.loss(x, self.norm, embedding, targets, weights), balance, shares

    def sizes(self) -> tuple[int, int]:
        """(all parameters, parameters that one token uses)."""
        shape = self.shape
        total = sum(p.numel() for p in self.parameters())
        idle = shape.layers * 3 * shape.hidden * shape.width * (shape.experts - shape.active)
        return total, total - idle
