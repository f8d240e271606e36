"""Lazy facade over `mach_decode.loader`, kept because the path is documented."""

from mach.facade import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "load": ("mach_decode.loader", "load"),
        "load_moe": ("mach_decode.loader", "load_moe"),
    },
    "mach-decode",
)
