"""A model's arithmetic on the CPU as lazy MLX operations: packed products, and what stands between them.

Products with packed weights, dense ones and a layer's routed experts; normalisation, rotary positions,
attention.

Owns the door to the C++ kernels: it compares the MLX that they were built against with the one that is
installed, before anything of them is loaded. `reference` holds their twins in stock MLX operations. Knows
nothing of checkpoints, banks or models.
"""

from lme_cpu_kernels._built import check_mlx

check_mlx()

from lme_cpu_kernels._ext import (  # noqa: E402
    DenseProduct,
    ExpertProduct,
    RmsNorm,
    Rotary,
    attention,
    build_info,
    exponential,
    kernel_sets,
)

__all__ = [
    "DenseProduct",
    "ExpertProduct",
    "RmsNorm",
    "Rotary",
    "attention",
    "build_info",
    "exponential",
    "kernel_sets",
]
