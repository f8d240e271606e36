"""Routed experts out of a bank and the disk, as lazy MLX operations on the CPU: the in-graph dispatch.

Owns the door to the C++ extension: it compares the MLX that it was built against with the one that is
installed, before anything of it is loaded. Knows nothing of checkpoints, models or eviction policies.
"""

import mlx.core as mx

from lme_expert_stream._built import MLX_VERSION

# The version is missing from MLX's stub. A development build carries a suffix that its headers do not.
_installed: str = mx.__version__  # type: ignore[attr-defined]
if _installed.partition(".dev")[0] != MLX_VERSION:
    raise ImportError(
        f"lme_expert_stream was built against mlx {MLX_VERSION}, but mlx {_installed} is installed, and "
        f"their C++ interfaces differ: install mlx=={MLX_VERSION}, or rebuild it with "
        "`python tools/build_mlx_pread_ext.py`",
        name=__name__,
    )

from lme_expert_stream._ext import ExpertStream, StreamedLayer, build_info  # noqa: E402

__all__ = ["ExpertStream", "StreamedLayer", "build_info"]
