"""Batched reads of expert records from disk into evaluated MLX arrays.

Owns the door to the C++ extension: it compares the MLX that the extension was built against with the one that
is installed, before anything of the extension is loaded. Knows nothing of sidecars, banks or eviction. The
reading itself is shared with `liblme_expert_io`, which needs no MLX.
"""

import mlx.core as mx

from liblme_expert_io.errors import ChecksumError, ExpertIOError, ReadError
from lme_mlx_pread_ext._built import MLX_VERSION

# The version is missing from MLX's stub. A development build carries a suffix that its headers do not.
_installed: str = mx.__version__  # type: ignore[attr-defined]
if _installed.partition(".dev")[0] != MLX_VERSION:
    raise ImportError(
        f"lme_mlx_pread_ext was built against mlx {MLX_VERSION}, but mlx {_installed} is installed, and "
        f"their C++ interfaces differ: install mlx=={MLX_VERSION}, or rebuild it with "
        "`python tools/build_mlx_pread_ext.py`",
        name=__name__,
    )

from lme_mlx_pread_ext._ext import ScatterPlan, build_info, crc32, release_rows  # noqa: E402

__all__ = [
    "ChecksumError",
    "ExpertIOError",
    "ReadError",
    "ScatterPlan",
    "build_info",
    "crc32",
    "release_rows",
]
