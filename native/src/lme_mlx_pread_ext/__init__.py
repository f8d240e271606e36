"""Batched reads of expert records from disk into evaluated MLX arrays.

Owns the door to the C++ extension: it compares the MLX that the extension was built against with the one that
is installed, before anything of the extension is loaded. Knows nothing of sidecars, banks or eviction. The
reading itself is shared with `liblme_expert_io`, which needs no MLX.
"""

from liblme_expert_io.errors import ChecksumError, ExpertIOError, ReadError
from lme_mlx_pread_ext._built import check_mlx

check_mlx()

from lme_mlx_pread_ext._ext import ScatterPlan, build_info, crc32, release_rows, use_huge_pages  # noqa: E402

__all__ = [
    "ChecksumError",
    "ExpertIOError",
    "ReadError",
    "ScatterPlan",
    "build_info",
    "crc32",
    "release_rows",
    "use_huge_pages",
]
