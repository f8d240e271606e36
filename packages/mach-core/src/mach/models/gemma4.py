"""Lazy facade: `Model` and `ModelArgs` of gemma4, from mlx-lm."""

from mach.facade import lazy_attributes

_MODULE = "mlx_lm.models.gemma4"
__getattr__, __dir__ = lazy_attributes(
    __name__, {"Model": (_MODULE, "Model"), "ModelArgs": (_MODULE, "ModelArgs")}, "mach-store"
)
