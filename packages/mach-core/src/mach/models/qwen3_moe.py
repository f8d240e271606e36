"""Lazy facade: `Model` and `ModelArgs` of qwen3_moe, from mlx-lm."""

from mach.facade import lazy_attributes

_MODULE = "mlx_lm.models.qwen3_moe"
__getattr__, __dir__ = lazy_attributes(
    __name__, {"Model": (_MODULE, "Model"), "ModelArgs": (_MODULE, "ModelArgs")}, "mach-store"
)
