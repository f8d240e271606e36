"""Owns the choice between mach-native's CPU kernels and stock MLX operations, and the reason for it.

The kernels compute in float32 on the CPU; elsewhere stock operations are the default. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import mlx.core as mx

from mach.io.sidecar_layout import Quantization
from mach_store.settings import StoreSettings

NATIVE_MODULE = "lme_cpu_kernels"


class ExpertProduct(Protocol):
    """`lme_cpu_kernels.ExpertProduct`, as far as it is used here."""

    def __call__(self, x: mx.array, slots: mx.array) -> mx.array:
        """Results: x [..., hidden], slots [..., k] → [..., k, hidden]."""

    def fill(self, out: mx.array, x: mx.array, routes: mx.array, slots: mx.array) -> mx.array:
        """`out` [tokens × k, hidden] with the results of `routes` [r] in their rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuKernels:
    """What computes products with weights.

    Attributes:
        native: whether mach-native's kernels do, where they can.
        reason: why they do not; empty when they do.
        name: the instruction set, or `mlx` for stock operations.
        threads: threads of a large product; 0 for stock operations.
    """

    native: bool
    reason: str
    name: str = "mlx"
    threads: int = 0
    _module: Any = None

    def expert_product(self, *arguments: Any, **options: Any) -> ExpertProduct:
        """`lme_cpu_kernels.ExpertProduct` with this one's threads."""
        made: ExpertProduct = self._module.ExpertProduct(*arguments, threads=self.threads, **options)
        return made

    def dense_product(self, *arguments: Any) -> Callable[..., mx.array]:
        """`lme_cpu_kernels.DenseProduct` with this one's threads."""
        return self._make("DenseProduct", *arguments)

    def rms_norm(self, *arguments: Any) -> Callable[..., mx.array]:
        """`lme_cpu_kernels.RmsNorm` with this one's threads."""
        return self._make("RmsNorm", *arguments)

    def rotary(self, *arguments: Any) -> Callable[..., mx.array]:
        """`lme_cpu_kernels.Rotary` with this one's threads."""
        return self._make("Rotary", *arguments)

    def attention(self, *arguments: Any, **options: Any) -> mx.array:
        """`lme_cpu_kernels.attention` with this one's threads."""
        result: mx.array = self._module.attention(*arguments, threads=self.threads, **options)
        return result

    def _make(self, name: str, *arguments: Any) -> Callable[..., mx.array]:
        made: Callable[..., mx.array] = getattr(self._module, name)(*arguments, threads=self.threads)
        return made

    def as_dict(self) -> dict[str, Any]:
        """For reports: name, threads, and the reason where stock operations compute."""
        return {"name": self.name, "threads": self.threads} | ({"reason": self.reason} if self.reason else {})


def stock_kernels(reason: str) -> CpuKernels:
    """Stock MLX operations, because of `reason`."""
    return CpuKernels(native=False, reason=reason)


def open_kernels(settings: StoreSettings) -> CpuKernels:
    """The native kernels where they can run and are not switched off."""
    if not settings.cpu_kernels:
        return stock_kernels("switched off by LME_CPU_KERNELS=0")
    if mx.default_device().type != mx.DeviceType.cpu:
        return stock_kernels("MLX computes on the GPU")
    try:
        module = import_module(NATIVE_MODULE)
    except ImportError as error:
        return stock_kernels(f"{NATIVE_MODULE} cannot be imported: {error}")
    info = module.build_info()
    return CpuKernels(
        native=True,
        reason="",
        name=info["kernels"],
        threads=settings.cpu_threads or min(64, int(info["threads"])),
        _module=module,
    )


def native_packing(quantization: Quantization | None) -> tuple[str, int, int] | None:
    """How mach-native spells a packing."""
    if quantization is None:
        return None
    return quantization.mode, quantization.bits, quantization.group_size
