"""Owns what stands between a layer's products, on native CPU kernels: norms, rotary positions, attention.

Small operations, but MLX's CPU backend computes each of them in a dozen steps. Modules are replaced after
their weights are loaded; the replacements keep the same parameters under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.base import scaled_dot_product_attention

from mach_store.cpu_kernels import CpuKernels

_ATTENTION = "scaled_dot_product_attention"


class KernelRMSNorm(nn.Module):
    """An RMS normalisation in one native step."""

    def __init__(self, original: nn.RMSNorm, normalize: Callable[[mx.array], mx.array]) -> None:
        """Take over `original`'s weight; `normalize` holds the same array."""
        super().__init__()
        self.weight, self.eps = original.weight, original.eps
        self._original, self._normalize = (original,), (normalize,)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., width] → the same shape."""
        if x.dtype != mx.float32:
            other: mx.array = self._original[0](x)
            return other
        return self._normalize[0](x)


class KernelRoPE(nn.Module):
    """Rotary positions in one native step."""

    def __init__(self, original: nn.RoPE, rotate: Callable[[mx.array, int], mx.array]) -> None:
        """`rotate` does what `original` does for one position of the first row."""
        super().__init__()
        self.dims, self.traditional = original.dims, original.traditional
        self.base, self.scale = original.base, original.scale
        self._original, self._rotate = (original,), (rotate,)

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """[..., length, width] → the same shape; `offset` is the first row's position, or one per batch."""
        if isinstance(offset, mx.array) or x.dtype != mx.float32:
            other: mx.array = self._original[0](x, offset)
            return other
        return self._rotate[0](x, offset)


def use_row_kernels(model: nn.Module, kernels: CpuKernels) -> None:
    """Replace normalisations and rotary positions, and let attention modules compute natively.

    Only layers of exactly MLX's own classes are replaced. What else a family has (frequencies of its own,
    other norms) stays on stock operations.

    Args:
        model: evaluated, in float32.
        kernels: nothing is replaced unless they are native.
    """
    if not kernels.native:
        return
    replaced: list[tuple[str, nn.Module]] = []
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if type(module) is nn.RMSNorm and module.weight.dtype == mx.float32:
            replaced.append((path, KernelRMSNorm(module, kernels.rms_norm(module.weight, module.eps))))
        elif type(module) is nn.RoPE:
            rotate = kernels.rotary(module.dims, module.traditional, module.base, module.scale)
            replaced.append((path, KernelRoPE(module, rotate)))
    if replaced:
        model.update_modules(tree_unflatten(replaced))
    attend = _attention(kernels)
    classes: dict[type, type] = {}
    for _, module in model.named_modules():
        kind = type(module)
        if kind not in classes:
            classes[kind] = _with_attention(kind, attend)
        # This instance's class: mlx-lm's own stays as it is.
        module.__class__ = classes[kind]


def _with_attention(kind: type, attend: Callable[..., mx.array]) -> type:
    """`kind`, or where its `__call__` uses mlx-lm's attention, a subclass that finds `attend` instead."""
    call = kind.__call__
    if not isinstance(call, FunctionType) or _ATTENTION not in call.__code__.co_names:
        return kind
    if call.__globals__.get(_ATTENTION) is not scaled_dot_product_attention:
        return kind
    ours = FunctionType(
        call.__code__,
        {**call.__globals__, _ATTENTION: attend},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    ours.__kwdefaults__ = call.__kwdefaults__
    return type(f"Kernel{kind.__name__}", (kind,), {"__call__": ours, "__doc__": kind.__doc__})


def _attention(kernels: CpuKernels) -> Callable[..., mx.array]:
    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """As `mlx_lm.models.base.scaled_dot_product_attention`."""
        plain = not hasattr(cache, "bits") and queries.dtype == keys.dtype == values.dtype == mx.float32
        if not plain or keys.shape[2] == 0:
            other: mx.array = scaled_dot_product_attention(
                queries, keys, values, cache, scale=scale, mask=mask, sinks=sinks
            )
            return other
        if isinstance(mask, mx.array) and mask.dtype not in (mx.bool_, mx.float32):
            mask = mask.astype(mx.float32)
        if sinks is not None and sinks.dtype != mx.float32:
            sinks = sinks.astype(mx.float32)
        return kernels.attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)

    return attend
