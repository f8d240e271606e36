"""Owns the reference dispatch: one route at a time, one expert in memory, every step evaluated.

Slow and plain on purpose; GatherSwitchGLU is tested equal to it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mach_store.bank_cache import BankCache
from mach_store.expert_kernel import Activation


class DiskSwitchGLU(nn.Module):
    """Routed experts read from disk one after another into a single slot."""

    def __init__(self, cache: BankCache, layer: int, activation: Activation) -> None:
        """A dispatch for one layer.

        Args:
            cache: gives the files and the counters; its bank is not used.
            layer: model layer index.
            activation: combines the up and gate products.
        """
        super().__init__()
        self._cache = cache
        self._bank = cache.layers[layer]
        self._bank.dispatch = {"dispatch": "disk"}
        self._apply = (activation,)
        self._slot = cache.form.scratch(cache.source.schemas[layer], 1)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """As `GatherSwitchGLU.__call__`, evaluated."""
        k = indices.shape[-1]
        rows = x.reshape(-1, x.shape[-1])
        ids = self._cache.fence(indices)
        self._cache.routed(self._bank.layer, ids, k)
        outputs = []
        for route, expert in enumerate(ids):
            self._bank.read_scratch(self._slot, [expert])
            token = route // k
            y = self._expert(rows[token : token + 1])
            mx.eval(y)
            outputs.append(y)
        return mx.concatenate(outputs).reshape(*indices.shape, -1)

    def _expert(self, row: mx.array) -> mx.array:
        up, gate = self._linear("up_proj", row), self._linear("gate_proj", row)
        return self._linear("down_proj", self._apply[0](up, gate))

    def _linear(self, projection: str, row: mx.array) -> mx.array:
        tensors = {name: array[0:1].squeeze(0) for name, array in self._slot.components[projection].items()}
        q = self._slot.packing[projection]
        if q is None:
            y = row @ tensors["weight"].T
        else:
            y = mx.quantized_matmul(
                row,
                tensors["weight"],
                tensors["scales"],
                tensors.get("biases"),
                transpose=True,
                group_size=q.group_size,
                bits=q.bits,
                mode=q.mode,
            )
        return y + tensors["bias"] if "bias" in tensors else y

    def stats(self) -> dict[str, Any]:
        """This layer's counters."""
        return {"dispatch": "disk", **self._bank.counters.as_dict()}
