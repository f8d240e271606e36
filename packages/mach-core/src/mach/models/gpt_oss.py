"""Lazy facade: `Model` and `ModelArgs` of gpt_oss, from mlx-lm."""

from mach.facade import lazy_attributes

_MODULE = "mlx_lm.models.gpt_oss"
__getattr__, __dir__ = lazy_attributes(
    __name__, {"Model": (_MODULE, "Model"), "ModelArgs": (_MODULE, "ModelArgs")}, "mach-store"
)
