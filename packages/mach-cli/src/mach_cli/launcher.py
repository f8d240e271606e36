"""Owns the console script `mach-generate` from before the heavy libraries are imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from mach.commands.process import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script, and a command of `mach`; returns the exit status."""
    return run_command("mach-generate", _run, arguments)


def _run(arguments: Sequence[str]) -> int:
    status: int = import_module("mach_cli.generate_command").run(arguments)
    return status
