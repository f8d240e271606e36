"""Lazy facade over `mach_decode.loader` and the swap, kept because the paths are documented."""

from mach.facade import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "load": ("mach_decode.loader", "load"),
        "load_moe": ("mach_decode.loader", "load_moe"),
        "_swap_switch_mlp": ("mach_store.model_builder", "swap_switch_mlp"),
    },
    "mach-decode",
)
