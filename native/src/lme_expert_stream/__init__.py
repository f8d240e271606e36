"""Routed experts out of a bank and the disk, as lazy MLX operations on the CPU: the in-graph dispatch.

Owns the door to the C++ extension: it compares the MLX that it was built against with the one that is
installed, before anything of it is loaded. Knows nothing of checkpoints, models or eviction policies.
"""

from lme_expert_stream._built import check_mlx

check_mlx()

from lme_expert_stream._ext import ExpertStream, StreamedLayer, build_info  # noqa: E402

__all__ = ["ExpertStream", "StreamedLayer", "build_info"]
