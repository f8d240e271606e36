"""Owns Metal's wired limit: how much of the engine's memory the system may not take from the GPU.

Nothing here was run on Metal by us. MLX clamps nothing: more than Metal recommends is an error of MLX's.
"""

from __future__ import annotations

import mlx.core as mx

from mach_decode.errors import ResidencyError

DEFAULT_WIRED_GB = 9.0


def wire(wired_gb: float | None) -> int | None:
    """Set the limit; returns its bytes, or None where there is no Metal.

    Args:
        wired_gb: 10⁹ bytes; None is DEFAULT_WIRED_GB, or what Metal recommends if that is less.

    Raises:
        ResidencyError: it was asked for where there is no Metal, or for more than Metal recommends.
    """
    if not mx.metal.is_available():
        if wired_gb is not None:
            raise ResidencyError(
                "--wired-gb sets Metal's wired limit, and there is no Metal here: leave it out"
            )
        return None
    most = int(mx.device_info()["max_recommended_working_set_size"])
    if wired_gb is None:
        limit = min(int(DEFAULT_WIRED_GB * 1e9), most)
    else:
        limit = int(wired_gb * 1e9)
        if limit > most:
            raise ResidencyError(
                f"--wired-gb {wired_gb:g}: Metal recommends at most {most / 1e9:.2f} here: lower it, or "
                "raise iogpu.wired_limit_mb"
            )
    mx.set_wired_limit(limit)
    return limit
