"""Owns the `mach` command: it finds subcommands through the entry-point group `mach.commands` and runs one.

A subcommand is a callable that takes its arguments and returns an exit status; it lives in whatever
distribution declares it, and none is imported before it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mach.commands.process import run_command
from mach.io.entry_points import EntryPoint, entry_points
from mach.version import __version__

COMMAND_GROUP = "mach.commands"
SUMMARIES = {
    "archs": "list the architectures that the engine knows",
    "check": "say whether a checkpoint will run here, before loading it",
    "convert": "make a 2-bit checkpoint from a higher-precision one",
    "generate": "generate text once, without a server",
    "models": "list the models that are here or can be downloaded",
    "prune": "slice a checkpoint into the engine's per-expert layout",
    "reap": "remove experts of low saliency",
    "serve": "serve a checkpoint over HTTP",
    "trace": "record which experts are used, and see what any bank would make of it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script; returns the exit status."""
    return run_command("mach", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(entry_points(COMMAND_GROUP)))
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        print(f"mach {__version__}")
        return 0
    commands = entry_points(COMMAND_GROUP)
    if name not in commands:
        known = ", ".join(sorted(commands)) or "none"
        hint = "; it comes with mach-cli or mach-server" if name in SUMMARIES else ""
        print(f"mach: no command {name!r} is installed{hint} (installed: {known})", file=sys.stderr)
        return 2
    status: int | None = commands[name].load()(rest)
    return status or 0


def _help(commands: dict[str, EntryPoint]) -> str:
    width = max(map(len, commands), default=0)
    lines = [
        f"  {name:{width}}  {SUMMARIES.get(name, 'from ' + commands[name].distribution)}"
        for name in sorted(commands)
    ]
    return "\n".join(
        [
            "usage: mach COMMAND [ARGUMENTS]",
            "       mach --help | --version",
            "",
            "Inference for Mixture-of-Experts models that are bigger than memory.",
            "",
            "commands:",
            *(lines or ["  none is installed"]),
            "",
            "`mach COMMAND --help` tells more.",
        ]
    )
