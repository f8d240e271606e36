"""Owns the search for checkpoints on this machine: the cache root, further directories, the bundled ones.

A checkpoint is a directory with a config.json beside safetensors files or an expert sidecar. The search goes
three levels deep and is bounded, so that neither a home directory nor a cycle of links traps it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from mach.discovery.model_row import LOCAL, ModelRow
from mach.errors import MachError
from mach.io.checkpoint_path import CHECKPOINT_GROUP
from mach.io.config_file import CONFIG_NAME, read_config
from mach.io.entry_points import entry_points
from mach.io.inspection import SIDECAR_DIRECTORY

MAX_DEPTH = 3
MAX_DIRECTORIES = 20_000


def local_models(directories: Iterable[str]) -> tuple[list[ModelRow], list[str]]:
    """Models below `directories` and installed ones, and warnings about what could not be looked at."""
    rows: dict[str, ModelRow] = {}
    warnings: list[str] = []
    for name, entry in sorted(entry_points(CHECKPOINT_GROUP).items()):
        try:
            path = os.fspath(entry.load()())
        except (ImportError, AttributeError, OSError) as error:
            warnings.append(f"installed checkpoint {name!r} is broken: {error}")
            continue
        if os.path.isfile(os.path.join(path, CONFIG_NAME)):
            rows[os.path.realpath(path)] = _row(name, path, warnings)
    budget = [MAX_DIRECTORIES]
    for directory in directories:
        for path in _checkpoints(directory, MAX_DEPTH, budget, set()):
            real = os.path.realpath(path)
            if real not in rows:
                rows[real] = _row(_name(directory, path), path, warnings)
    if budget[0] <= 0:
        warnings.append(f"more than {MAX_DIRECTORIES} directories: the rest was not scanned")
    return list(rows.values()), warnings


def _checkpoints(directory: str, depth: int, budget: list[int], seen: set[str]) -> Iterator[str]:
    budget[0] -= 1
    real = os.path.realpath(directory)
    if budget[0] <= 0 or real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(directory) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # absent or unreadable: the default cache root usually is
        return
    names = {entry.name for entry in listing}
    if CONFIG_NAME in names and (
        SIDECAR_DIRECTORY in names or any(name.endswith(".safetensors") for name in names)
    ):
        yield directory
        return
    if depth == 0:
        return
    for entry in listing:
        try:
            inside = not entry.name.startswith(".") and entry.is_dir()
        except OSError:
            continue
        if inside:
            yield from _checkpoints(entry.path, depth - 1, budget, seen)


def _name(root: str, path: str) -> str:
    relative = os.path.relpath(path, root)
    return os.path.basename(os.path.abspath(path)) if relative == "." else relative


def _row(name: str, path: str, warnings: list[str]) -> ModelRow:
    model_type = None
    try:
        model_type = read_config(path).text("model_type")[:100]
    except MachError as error:
        warnings.append(str(error))
    return ModelRow(name, LOCAL, model_type, True, _size(path), path)


def _size(path: str) -> int:
    """Bytes of a checkpoint's own files and of its sidecar."""
    total = 0
    for folder in (path, os.path.join(path, SIDECAR_DIRECTORY)):
        try:
            with os.scandir(folder) as entries:
                total += sum(entry.stat().st_size for entry in entries if entry.is_file())
        except OSError:  # no sidecar, or a link into nothing
            continue
    return total
