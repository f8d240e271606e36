"""Muon: momentum with orthogonal updates, for every hidden matrix; each expert is a matrix of its own.

Owns the update rule (Newton-Schulz iteration and scaling after K. Jordan, "Muon", 2024; the factor 0.2 *
sqrt(max(rows, columns)) after Liu et al., "Muon is scalable", 2025). Embedding, router and norms are
AdamW's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonal(gradients: Tensor) -> Tensor:
    """Nearest orthogonal matrices of `gradients` [n, rows, columns], rows <= columns, in bfloat16."""
    x = gradients.to(torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x


class Muon:
    """The optimiser's state. `halves` names the parameters that hold two matrices on top of one another."""

    def __init__(self, parameters: list[nn.Parameter], halves: set[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.halves = halves
        self.decay = decay
        self.momenta = [torch.zeros_like(p) for p in parameters]

    def _matrices(self, parameter: nn.Parameter, update: Tensor) -> tuple[Tensor, bool]:
        """`update` as [n, small, large], and whether it was transposed for that."""
        stacked = update if update.dim() == 3 else update[None]
        if parameter in self.halves:
            stacked = stacked.reshape(-1, stacked.shape[1] // 2, stacked.shape[2])
        tall = stacked.shape[-2] > stacked.shape[-1]
        return (stacked.mT if tall else stacked), tall

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update; matrices of one shape go through the iteration together."""
        gradients = [p.grad for p in self.parameters]
        torch._foreach_lerp_(self.momenta, gradients, 0.05)
        updates = torch._foreach_lerp(gradients, self.momenta, 0.95)
        groups: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor, bool]]] = {}
        for parameter, update in zip(self.parameters, updates, strict=True):
            matrices, tall = self._matrices(parameter, update)
            groups.setdefault(tuple(matrices.shape[-2:]), []).append((parameter, matrices, tall))
        for (rows, columns), members in groups.items():
            results = orthogonal(torch.cat([matrices for _, matrices, _ in members]))
            at = 0
            for parameter, matrices, tall in members:
                result = results[at : at + matrices.shape[0]]
                at += matrices.shape[0]
                result = (result.mT if tall else result).reshape(parameter.shape)
                parameter.mul_(1 - rate * self.decay)
                parameter.add_(result.to(parameter.dtype), alpha=-rate * 0.2 * math.sqrt(max(rows, columns)))
