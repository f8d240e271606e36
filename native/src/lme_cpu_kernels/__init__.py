"""A model's arithmetic on the CPU as lazy MLX operations: packed products, and what stands between them.

Products with packed weights, dense ones and a layer's routed experts; normalisation, rotary positions,
attention.

Owns the door to the C++ kernels: it compares the MLX that they were built against with the one that is
installed, before anything of them is loaded. `reference` holds their twins in stock MLX operations. Knows
nothing of checkpoints, banks or models.
"""

import mlx.core as mx

from lme_cpu_kernels._built import MLX_VERSION

# The version is missing from MLX's stub. A development build carries a suffix that its headers do not.
_installed: str = mx.__version__  # type: ignore[attr-defined]
if _installed.partition(".dev")[0] != MLX_VERSION:
    raise ImportError(
        f"lme_cpu_kernels was built against mlx {MLX_VERSION}, but mlx {_installed} is installed, and "
        f"their C++ interfaces differ: install mlx=={MLX_VERSION}, or rebuild it with "
        "`python tools/build_mlx_pread_ext.py`",
        name=__name__,
    )

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
