"""Lazy facade over `mach_store.gather_switch_glu`, kept because the path is documented."""

from mach.facade import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "GatherSwitchGLU": ("mach_store.gather_switch_glu", "GatherSwitchGLU"),
    },
    "mach-store",
)
