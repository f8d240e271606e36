"""Owns the import of xgrammar without torch.

xgrammar 0.2.8 needs torch for its matcher class and its kernels alone. A package of the same name and path,
but without the code of `__init__.py`, lets the other modules be imported, and the native matcher is made
directly. That depends on the library's insides: its version is pinned, and `test_xgrammar_backend` checks it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import sys
import threading
import types
from typing import Any, NamedTuple

VERSION = "0.2.8"
_LOCK = threading.Lock()


class XgrammarLibrary(NamedTuple):
    """What is used of xgrammar."""

    core: Any
    tokenizer_info: Any
    compiler: Any


def xgrammar_version() -> str | None:
    """The installed version; None where there is none."""
    try:
        return importlib.metadata.version("xgrammar")
    except importlib.metadata.PackageNotFoundError:
        return None


def load_xgrammar() -> XgrammarLibrary:
    """Import it, without torch.

    Raises:
        ImportError: it is not installed, or in another version.
    """
    found = xgrammar_version()
    if found != VERSION:
        raise ImportError(
            f"xgrammar {VERSION} is needed, but {found or 'none'} is installed", name="xgrammar"
        )
    with _LOCK:
        if "xgrammar" not in sys.modules:
            # The finder alone: `find_spec("xgrammar.base")` would run the package's own code.
            spec = importlib.machinery.PathFinder.find_spec("xgrammar")
            assert spec is not None and spec.submodule_search_locations, "an installed package has a path"
            package = types.ModuleType("xgrammar")
            package.__path__ = list(spec.submodule_search_locations)
            package.__spec__ = spec
            sys.modules["xgrammar"] = package
        # In this order each finds the ones it imports.
        for name in ("exception", "load_binding", "base", "grammar", "tokenizer_info", "compiler"):
            importlib.import_module(f"xgrammar.{name}")
        modules = {name: sys.modules[f"xgrammar.{name}"] for name in ("base", "tokenizer_info", "compiler")}
    return XgrammarLibrary(modules["base"]._core, modules["tokenizer_info"], modules["compiler"])
