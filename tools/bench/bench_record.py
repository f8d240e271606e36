"""Owns how benchmarks report: a table on stdout and rows appended to docs/bench/<name>.csv."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent.parent / "docs" / "bench"


def append_rows(name: str, rows: Sequence[Mapping[str, object]], **common: object) -> None:
    """Print `rows` and append them, with date and machine, to `docs/bench/<name>.csv`.

    A file whose columns differ from these is begun anew: old figures stay in the history of the repository.
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
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.csv"
    header = list(full[0])
    known = path.read_text().splitlines()[0].split(",") if path.exists() else None
    with open(path, "a" if known == header else "w", newline="") as handle:
        writer = csv.DictWriter(handle, header)
        if known != header:
            writer.writeheader()
        writer.writerows(full)
