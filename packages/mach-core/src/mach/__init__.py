"""mach: inference for Mixture-of-Experts models that are bigger than memory.

This package (distribution mach-core) is the bottom of the workspace and needs the standard library alone.
`REGISTRY` and `detect_arch` are here at once; the loaders come from mach-decode when first used.
"""

from typing import Any

from mach.facade import absent_attributes, lazy_attributes
from mach.io.arch_registry import REGISTRY, detect_arch
from mach.version import __version__

__all__ = ["REGISTRY", "__version__", "detect_arch", "load", "load_moe", "load_v4_flash"]

_LAZY = {
    "load": ("mach_decode.loader", "load"),
    "load_moe": ("mach_decode.loader", "load_moe"),
    "load_v4_flash": ("mach_decode.v4_flash", "load_v4_flash"),
}
_NOT_YET = ("BlockSpecDecEngine", "BlockSpecDecEngineConfig", "BlockSpecDecEngineMode")

_lazy_getattr, _ = lazy_attributes("mach", _LAZY, "mach-decode")
_absent_getattr, _ = absent_attributes("mach", _NOT_YET, f"mach {__version__} does not have it yet")


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name) if name in _LAZY else _absent_getattr(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
