"""MLX's affine quantisation in PyTorch, as values: what a 4-bit weight is worth after rounding.

Owns the formula and which weights get how many bits. The formula is that of MLX's `affine_quantize` kernel
(mlx/backend/metal/kernels/quantized.h): per group of 64 the edge of larger magnitude is met exactly.
"""

from __future__ import annotations

import torch

GROUP = 64
EPSILON = 1e-7


def rounded(weight: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """The values that `weight` [..., k], k a multiple of GROUP, has after quantisation; same shape, float32.

    Scales and biases are rounded to bfloat16, the type in which a bfloat16 checkpoint stores them.
    """
    groups = weight.to(torch.bfloat16).float().unflatten(-1, (-1, GROUP))
    bins = 2**bits - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low_edge = low.abs() > high.abs()
    scale = ((high - low) / bins).clamp(min=EPSILON)
    scale = torch.where(low_edge, scale, -scale)
    edge = torch.where(low_edge, low, high)
    steps = torch.round(edge / scale)
    bias = torch.where(steps == 0, torch.zeros_like(edge), edge)
    scale = torch.where(steps == 0, scale, edge / steps)
    codes = torch.round((groups - bias) / scale).clamp(0, bins)
    scale, bias = scale.to(torch.bfloat16).float(), bias.to(torch.bfloat16).float()
    return (codes * scale + bias).flatten(-2)


def straight_through(weight: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Forward the rounded values, backward as if they were `weight`; bfloat16."""
    return (weight + (rounded(weight.detach(), bits) - weight.detach())).to(torch.bfloat16)
