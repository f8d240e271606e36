"""Owns the console scripts of mach-cli from before the heavy libraries are imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from mach.commands.process import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """`mach-generate`, as a console script and as a command of `mach`; returns the exit status."""
    return run_command("mach-generate", _command("generate_command"), arguments)


def prune(arguments: Sequence[str] | None = None) -> int:
    """`mach-prune`, as a console script and as a command of `mach`; returns the exit status."""
    return run_command("mach-prune", _command("prune_command"), arguments)


def trace(arguments: Sequence[str] | None = None) -> int:
    """The `trace` command of `mach`; returns the exit status."""
    return run_command("mach trace", _command("trace_command"), arguments)


def _command(module: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        status: int = import_module(f"mach_cli.{module}").run(arguments)
        return status

    return run
