"""Owns a layer's routed-expert arithmetic over any arrays: in native kernels where they can, else stock.

Bank, scratch arena and resident experts all come through here, so that each gives the same bits for the same
expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.activations import SwigluOAI
from mlx_lm.models.gemma4_text import GeGLU
from mlx_lm.models.switch_layers import SwiGLU

from mach_store.cpu_kernels import CpuKernels, ExpertProduct, native_packing
from mach_store.deepseek_v4.routing import ClampedSwiGLU
from mach_store.expert_kernel import Activation, Packing, apply_experts

_IN_ORDER = ("gate_proj", "up_proj", "down_proj")


class NativeActivation(NamedTuple):
    """An activation that the kernels know: their name for it and its parameters."""

    name: str
    alpha: float | None = None
    limit: float | None = None


class ExpertTensors(dict[str, dict[str, mx.array]]):
    """Projection → component → array [slots, …], evaluated, and the native products over them.

    A product holds the arrays, so it lives and ends with them. The arrays may be written in place, but not be
    replaced: make new tensors for new arrays.
    """

    def __init__(self, components: dict[str, dict[str, mx.array]]) -> None:
        """The arrays as they are; nothing is copied."""
        super().__init__(components)
        self._products: dict[NativeActivation, ExpertProduct | str] = {}

    def product(
        self, kernels: CpuKernels, activation: NativeActivation, packing: Packing
    ) -> ExpertProduct | str:
        """The native product, or why there is none."""
        made = self._products.get(activation)
        if made is None:
            parts = [self[projection] for projection in _IN_ORDER]
            packings = tuple(native_packing(packing[projection]) for projection in _IN_ORDER)
            name, alpha, limit = activation
            try:
                made = kernels.expert_product(*parts, packings, activation=name, alpha=alpha, limit=limit)
            except ValueError as error:
                made = str(error)
            self._products[activation] = made
        return made


class ExpertBlock:
    """down(activation(gate(x), up(x))) for routes to experts in slots."""

    def __init__(self, activation: Activation, kernels: CpuKernels) -> None:
        """A block for one layer.

        Args:
            activation: combines the up and gate products; the family's own module.
            kernels: what to compute with, where it can.
        """
        self.activation, self._kernels = activation, kernels
        self._native = native_activation(activation) if kernels.native else None
        self.reason = kernels.reason
        if kernels.native and self._native is None:
            self.reason = f"the kernels know no activation like {type(activation).__name__}"

    @property
    def threads(self) -> int:
        """Threads of a product; 0 for stock operations."""
        return 0 if self.reason else self._kernels.threads

    def prepare(self, tensors: ExpertTensors, packing: Packing) -> None:
        """Find out whether the kernels can compute with `tensors`, and make ready for it."""
        self.native_product(tensors, packing)

    def __call__(self, tensors: ExpertTensors, packing: Packing, x: mx.array, slots: mx.array) -> mx.array:
        """As `expert_kernel.apply_experts`."""
        product = self.native_product(tensors, packing)
        if product is None:
            return apply_experts(tensors, packing, self.activation, x, slots)
        return product(x, slots)

    def native_product(self, tensors: ExpertTensors, packing: Packing) -> ExpertProduct | None:
        """What computes with `tensors` natively; None where stock operations do."""
        if self._native is None:
            return None
        product = tensors.product(self._kernels, self._native, packing)
        if isinstance(product, str):
            self.reason = product
            return None
        return product

    def as_dict(self) -> dict[str, Any]:
        """For reports: which kernels compute this layer, and why not the native ones."""
        if self.reason:
            return {"kernels": "mlx", "kernels_reason": self.reason}
        return {"kernels": self._kernels.name}


def native_activation(activation: Activation) -> NativeActivation | None:
    """Which of the kernels' activations computes the same, if one does."""
    kind = type(activation)
    if kind is SwiGLU:
        return NativeActivation("swiglu")
    if kind is SwigluOAI:
        return NativeActivation("swiglu_oai", activation._alpha, activation._limit)  # type: ignore[attr-defined]
    if isinstance(activation, ClampedSwiGLU):
        return NativeActivation("swiglu", limit=activation.limit)
    if kind is GeGLU:
        return NativeActivation("geglu_tanh")
    return None
