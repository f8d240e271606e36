"""Owns the look-up of installed entry points in one group, straight from `*.dist-info/entry_points.txt`.

importlib.metadata does the same and more, but importing it costs several times what a whole command may take
to start; it remains the fallback of nothing here, and a test compares the two.
Format: https://packaging.python.org/en/latest/specifications/entry-points/
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NamedTuple


class EntryPoint(NamedTuple):
    """One declared entry point.

    Attributes:
        name: what users call it.
        target: `module:attribute`.
        distribution: the distribution that declares it, as its dist-info directory spells it.
    """

    name: str
    target: str
    distribution: str

    def load(self) -> Any:
        """Import the module and return the attribute; ImportError and AttributeError pass through."""
        module, _, attribute = self.target.partition(":")
        value: Any = import_module(module)
        for part in filter(None, attribute.split(".")):
            value = getattr(value, part)
        return value


def entry_points(group: str) -> dict[str, EntryPoint]:
    """Name → entry point of `group`, over sys.path; an earlier path wins, as imports do."""
    found: dict[str, EntryPoint] = {}
    distributions: set[str] = set()
    for directory in sys.path:
        try:
            names = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for name in names:
            if not name.endswith(".dist-info"):
                continue
            distribution = name.partition("-")[0].lower()
            if distribution in distributions:
                continue
            distributions.add(distribution)
            for entry in _read(os.path.join(directory, name, "entry_points.txt"), group, distribution):
                found.setdefault(entry.name, entry)
    return found


def _read(path: str, group: str, distribution: str) -> list[EntryPoint]:
    try:
        with open(path, encoding="utf-8") as handle:
            lines = handle.read(1 << 20).splitlines()
    except (OSError, UnicodeDecodeError):
        return []  # most distributions declare none
    entries, inside = [], False
    for line in lines:
        line = line.strip()
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            target = target.partition("[")[0]
            entries.append(EntryPoint(name.strip(), target.strip(), distribution.replace("_", "-")))
    return entries
