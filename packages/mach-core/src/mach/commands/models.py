"""Owns `mach-models`: local checkpoints and the remote catalogue as one table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mach.commands.process import run_command
from mach.commands.text_table import printable, readable_size, text_table
from mach.discovery.local_models import local_models
from mach.discovery.model_row import ModelRow, merge_rows
from mach.errors import MachError
from mach.settings import CoreSettings

COLUMNS = ("name", "source", "model_type", "supported", "installed", "size")
HINT = "local models only; set LME_CATALOG_URL and LME_CATALOG_TOKEN to list what can be downloaded"


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script; returns the exit status."""
    return run_command("mach-models", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    settings = CoreSettings.from_environment(cache_root=options.cache_dir)
    rows, warnings = local_models([settings.cache_root, *settings.models_directories, *options.dir])
    remote: list[ModelRow] = []
    hint = None
    if options.local_only or not (settings.catalog_url and settings.catalog_token):
        hint = HINT
    else:
        # Networking costs more to import than a whole local listing takes.
        from mach.discovery.remote_catalog import remote_models  # noqa: PLC0415

        try:
            remote, more = remote_models(settings.catalog_url, settings.catalog_token)
            warnings += more
        except MachError as error:
            warnings.append(f"the catalogue is left out: {error}")
    merged = merge_rows(rows, remote)
    for warning in warnings:
        print(f"mach-models: {printable(warning)}", file=sys.stderr)
    if options.json:
        print(json.dumps({"models": [_json(row) for row in merged], "hint": hint}, indent=2))
        return 0
    print(text_table(COLUMNS, [_cells(row) for row in merged]) if merged else "no models found")
    if hint:
        print(f"\n{hint}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach-models", description="List the models that are here or can be downloaded."
    )
    parser.add_argument("--local-only", action="store_true", help="only scan local checkpoints")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--dir", action="append", default=[], metavar="PATH", help="scan PATH too (repeatable)"
    )
    parser.add_argument("--cache-dir", metavar="PATH", help="instead of ~/.cache/mach")
    return parser


def _json(row: ModelRow) -> dict[str, object]:
    return row._asdict() | {"supported": row.supported}


def _cells(row: ModelRow) -> tuple[str, ...]:
    return (
        printable(row.name),
        row.source,
        printable(row.model_type or "unknown"),
        "yes" if row.supported else "no",
        "yes" if row.installed else "no",
        "unknown" if row.size is None else readable_size(row.size),
    )
