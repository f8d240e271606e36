"""Owns what computes a loaded model: its layers on native CPU kernels, and the report of what is not."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from mach_store.cpu_kernels import CpuKernels
from mach_store.dense_kernels import use_dense_kernels
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.row_kernels import use_row_kernels


def use_kernels(model: nn.Module, kernels: CpuKernels) -> dict[str, Any]:
    """Put every layer of `model` that the kernels can compute on them.

    Args:
        model: loaded and evaluated; its routed experts are modules that were made with `kernels`.
        kernels: nothing is changed unless they are native.

    Returns:
        For reports: `name` of the instruction set (`mlx` for stock operations), `threads`, `reason` where
        none is native, and `stock`: path of a product that stays on stock operations → why.
    """
    stock = use_dense_kernels(model, kernels)
    use_row_kernels(model, kernels)
    for path, module in model.named_modules():
        if isinstance(module, GatherSwitchGLU) and kernels.native and module.kernels_reason:
            stock[path] = module.kernels_reason
    return kernels.as_dict() | {"stock": stock}
