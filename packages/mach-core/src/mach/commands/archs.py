"""Owns `mach-archs`: the registry as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from mach.commands.process import run_command
from mach.commands.text_table import text_table
from mach.io.arch_registry import registry_summary

USAGE = """usage: mach-archs [--json]

List the architectures that this engine knows, from its registry.

  --json  everything the registry says, as JSON
"""
COLUMNS = ("model_type", "swiglu", "stacked", "expert_bias", "wrapped", "bits / group", "model_module")


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script; returns the exit status."""
    return run_command("mach-archs", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    # By hand, because importing argparse would be a third of the start-up budget.
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    unknown = [argument for argument in arguments if argument != "--json"]
    if unknown:
        print(f"{USAGE}\nmach-archs: unrecognized argument {unknown[0]!r}", file=sys.stderr)
        return 2
    if arguments:
        print(json.dumps(registry_summary(), indent=2))
        return 0
    rows = [
        (
            arch["model_type"],
            arch["swiglu_variant"],
            _yes(arch["stacked_supported"]),
            _yes(arch["has_expert_bias"]),
            _yes(arch["text_config_wrapped"]),
            f"{arch['default_bits']} / {arch['default_group_size']}",
            arch["model_module"],
        )
        for arch in registry_summary()
    ]
    print(text_table(COLUMNS, rows))
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    sys.exit(main())
