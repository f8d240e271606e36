"""Owns the dense projections on native CPU kernels: attention, shared experts, routers, the output head.

Modules are replaced after their weights are loaded; the replacements keep the same parameters under the same
names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mach_store.cpu_kernels import CpuKernels

_COMPONENTS = ("weight", "scales", "biases", "bias")


class KernelLinear(nn.Module):
    """A linear layer, quantised or not, whose product is native."""

    def __init__(self, original: nn.Module, product: Callable[[mx.array], mx.array]) -> None:
        """Take over `original`'s parameters; `product` holds the same arrays."""
        super().__init__()
        _take_over(self, original)
        # Inside a tuple, so that it is not taken for a parameter.
        self._product = (product,)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., columns] → [..., rows], float32."""
        return self._product[0](_widened(x))


class KernelEmbedding(nn.Module):
    """A quantised embedding that is also the output head."""

    def __init__(self, original: nn.QuantizedEmbedding, product: Callable[[mx.array], mx.array]) -> None:
        """Take over `original`'s parameters; `product` holds the same arrays."""
        super().__init__()
        _take_over(self, original)
        self._look_up = (original,)
        self._product = (product,)

    def __call__(self, ids: mx.array) -> mx.array:
        """The rows of `ids`, float32."""
        return _widened(self._look_up[0](ids))

    def as_linear(self, x: mx.array) -> mx.array:
        """[..., columns] → [..., vocabulary], float32."""
        return self._product[0](_widened(x))


def use_dense_kernels(model: nn.Module, kernels: CpuKernels) -> dict[str, str]:
    """Replace the dense layers of `model` that the kernels can compute.

    Args:
        model: evaluated, in float32.
        kernels: nothing is replaced unless they are native.

    Returns:
        Path of a layer that stays on stock operations → why.
    """
    if not kernels.native:
        return {}
    refused: dict[str, str] = {}
    replaced: list[tuple[str, nn.Module]] = []
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        kind = type(module)
        if kind not in (nn.Linear, nn.QuantizedLinear, nn.QuantizedEmbedding):
            continue
        packing = None if kind is nn.Linear else (module.mode, module.bits, module.group_size)
        # A slot more, without a copy.
        parts = {name: module[name][None] for name in _COMPONENTS if module.get(name) is not None}
        mx.eval(parts)
        try:
            product = kernels.dense_product(parts, packing)
        except ValueError as error:
            refused[path] = str(error)
            continue
        wrap: Any = KernelEmbedding if kind is nn.QuantizedEmbedding else KernelLinear
        replaced.append((path, wrap(module, product)))
    if replaced:
        model.update_modules(tree_unflatten(replaced))
    return refused


def _take_over(module: nn.Module, original: nn.Module) -> None:
    for name in (*_COMPONENTS, "mode", "bits", "group_size"):
        if original.get(name, getattr(original, name, None)) is not None:
            setattr(module, name, original[name] if name in original else getattr(original, name))
    module.freeze()


def _widened(x: mx.array) -> mx.array:
    # MLX unpacks mxfp4 to bfloat16, whatever the model computes in.
    return x if x.dtype == mx.float32 else x.astype(mx.float32)
