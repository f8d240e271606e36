"""Owns how benchmarks report: a table on stdout and rows appended to docs/bench/<name>.csv."""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent.parent / "docs" / "bench"


def append_rows(
    name: str,
    rows: Sequence[Mapping[str, object]],
    *,
    replacing: Sequence[str] | None = None,
    directory: Path = DIRECTORY,
    **common: object,
) -> None:
    """Print `rows` and append them, with date and machine, to `docs/bench/<name>.csv`.

    A file whose columns differ from these is begun anew: old figures stay in the history of the repository.

    Args:
        name: of the file.
        rows: column → value; what a row lacks is empty.
        replacing: columns: older rows that agree with a new one in all of them go. None keeps every row.
        directory: another place for the file.
        common: columns that are the same in every row.
    """
    machine = f"{platform.system()} {platform.machine()} {os.cpu_count()} cores"
    date = datetime.date.today().isoformat()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    full = [
        {"date": date, "machine": machine, **common, **{c: row.get(c, "") for c in columns}} for row in rows
    ]
    widths = {c: max(len(c), *(len(str(row[c])) for row in full)) for c in columns}
    print("  ".join(c.ljust(widths[c]) for c in columns))
    for row in full:
        print("  ".join(str(row[c]).ljust(widths[c]) for c in columns))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.csv"
    header = list(full[0])
    kept = [row for row in read_rows(name, directory) if list(row) == header] if path.exists() else []
    if replacing is not None:
        new = {tuple(str(row[column]) for column in replacing) for row in full}
        kept = [row for row in kept if tuple(row[column] for column in replacing) not in new]
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, header)
        writer.writeheader()
        writer.writerows([*kept, *full])


def read_rows(name: str, directory: Path = DIRECTORY) -> list[dict[str, str]]:
    """What `append_rows` has written."""
    with open(directory / f"{name}.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """`--output`, the same for every tool whose figures the page shows."""
    parser.add_argument(
        "--output", type=Path, default=DIRECTORY, help="folder for the CSV, docs/bench if not given"
    )
