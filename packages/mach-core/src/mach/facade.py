"""Owns the one mechanism behind mach's lazy names: module attributes that are imported when first asked for.

It never imports what it points to by itself, so `import mach` stays free of MLX whatever is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(
    facade: str, targets: Mapping[str, tuple[str, str]], distribution: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A module's `__getattr__` and `__dir__` that serve `targets` from where they are defined.

    Args:
        facade: the module that the names appear in, for messages.
        targets: attribute → (defining module, name there).
        distribution: what to install when the defining module is absent.

    The returned `__getattr__` raises ImportError naming `distribution` if the defining module (or a package
    above it) is what is missing; an ImportError from inside that module passes through untouched.
    """

    def __getattr__(name: str) -> Any:
        try:
            module, attribute = targets[name]
        except KeyError:
            raise AttributeError(f"module {facade!r} has no attribute {name!r}") from None
        return getattr(_import(module, f"{facade}.{name}", distribution), attribute)

    def __dir__() -> list[str]:
        return sorted(targets)

    return __getattr__, __dir__


def absent_attributes(
    facade: str, names: tuple[str, ...], reason: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A `__getattr__` that refuses `names` with an ImportError giving `reason`, and an empty `__dir__`."""

    def __getattr__(name: str) -> Any:
        if name in names:
            raise ImportError(f"{facade}.{name}: {reason}", name=facade)
        raise AttributeError(f"module {facade!r} has no attribute {name!r}")

    return __getattr__, lambda: []


def _import(module: str, wanted_as: str, distribution: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"{wanted_as} needs the distribution {distribution!r} ({error.name} is not installed): "
            f"pip install {distribution}",
            name=error.name,
        ) from error
