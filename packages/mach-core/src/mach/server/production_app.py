"""Lazy facade over `mach_server.app`, kept because the path is documented."""

from mach.facade import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "create_app": ("mach_server.app", "create_app"),
    },
    "mach-server",
)
