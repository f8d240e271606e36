"""Put the tables and pictures of docs/benchmarks.md between their marks, from the benchmarks' CSV files.

    uv run python tools/bench/fill_benchmarks.py [--check]

Rewrites the page in place; with --check it changes nothing and exits with 1 where the page differs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_record import DIRECTORY, read_rows
from benchmark_tables import TABLES, TARGETS

from mach.commands.process import run_command

PAGE = DIRECTORY.parent / "benchmarks.md"
BLOCK = re.compile(r"(<!-- begin ([a-z0-9-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
MISSING = "*Not measured yet.*"

Row = dict[str, str]


def main(arguments: Sequence[str]) -> int:
    """Fill or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=Path, default=DIRECTORY, help="folder of the CSV files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if it would")
    options = parser.parse_args(arguments)
    text = options.page.read_text()
    filled = BLOCK.sub(lambda match: match[1] + block(match[2], options.bench) + match[3], text)
    if options.check:
        if text != filled:
            print(f"{options.page}: does not show what the CSV files say: run this tool without --check")
        return int(text != filled)
    options.page.write_text(filled)
    return 0


def block(name: str, bench: Path) -> str:
    """What belongs between the marks of this name, or that it has not been measured."""
    try:
        lines = _block(name, bench)
    except (FileNotFoundError, KeyError):
        lines = []
    return "\n".join(lines or [MISSING]) + "\n"


def _block(name: str, bench: Path) -> list[str]:
    if name == "targets":
        return _targets(bench)
    if name.startswith("figure-"):
        path = bench / "figures" / f"{name}.svg"
        return [f"![{name}](bench/figures/{name}.svg)"] if path.exists() else []
    table = TABLES[name]
    rows = _rows(table.csv, table.where, bench)
    heads = list(table.columns.values())
    lines = [_line(heads), _line(["---", *["--:"] * (len(heads) - 1)])] if rows else []
    lines += [_line([row[column] for column in table.columns]) for row in rows]
    return lines + _when(rows)


def _targets(bench: Path) -> list[str]:
    lines = [_line(["figure", "target", "measured", "reached"]), _line(["---", "--:", "---", "---"])]
    for target in TARGETS:
        try:
            rows = _rows(target.csv, target.where, bench)
            values = [float(row[target.column]) for row in rows]
        except (FileNotFoundError, KeyError):
            rows, values = [], []
        if target.best and values:
            best = values.index(max(values))
            rows, values = rows[best : best + 1], values[best : best + 1]
        told = [
            " ".join([f"{value:g}", *([f"({', '.join(row[c] for c in target.label)})"] * bool(target.label))])
            for row, value in zip(rows, values, strict=True)
        ]
        reached = sum(value >= target.least for value in values)
        verdict = "yes" if reached == len(values) else "no" if not reached else f"{reached} of {len(values)}"
        lines.append(
            _line(
                [target.figure, f"≥ {target.least:g}", "; ".join(told) or MISSING, verdict if values else ""]
            )
        )
    return lines


def _rows(name: str, where: Mapping[str, str], bench: Path) -> list[Row]:
    return [row for row in read_rows(name, bench) if all(row[c] == value for c, value in where.items())]


def _when(rows: Sequence[Row]) -> list[str]:
    """When and where the rows were measured, and what else the machine did meanwhile."""
    told = {f"{row['date']}, {row['machine']}" + _others(row) for row in rows}
    return ["", *(f"<sub>{line}</sub>" for line in sorted(told))] if rows else []


def _others(row: Row) -> str:
    return f"; other processes kept {row['others']} CPUs busy" if row.get("others") else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(run_command("fill_benchmarks", main))
