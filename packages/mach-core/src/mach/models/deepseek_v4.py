"""Lazy facade: `Model` and `ModelArgs` of deepseek_v4, mach's own, from mach-store."""

from mach.facade import lazy_attributes

_MODULE = "mach_store.deepseek_v4"
__getattr__, __dir__ = lazy_attributes(
    __name__, {"Model": (_MODULE, "Model"), "ModelArgs": (_MODULE, "ModelArgs")}, "mach-store"
)
