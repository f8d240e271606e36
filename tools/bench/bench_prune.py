"""Compares mach-prune with copying the same checkpoint's files, in one run: speed, and peak memory.

    uv run python tools/bench/bench_prune.py [--gigabytes 1.2] [--rounds 5] [--folder DIR]

A random stacked checkpoint in bfloat16 is sliced whole (every byte read and written) and with half of its
experts, and a packed one whole. Every round also copies the files with `cp` until they are on the disk, in
alternating order; once with the source in the page cache (warm) and once without (cold; Linux only). A run of
mach-prune is a process of its own, which reports its time, start of the interpreter excluded, and its peak
memory. Speeds are bytes written per second; the ratio is the median of the rounds' own ratios, because a
shared disk's speed drifts. Appends to docs/bench/prune.csv. Exit status 1 if slicing a plain checkpoint whole
is slower than 0.7 of copying, or a peak (beyond the interpreter's and libraries' own) reaches two layers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench_record import append_rows
from beside_copying import PEAK, beside_copying, caches

from mach.commands.process import run_command
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

EXPERTS, HIDDEN, WIDTH = 64, 1024, 768
PRUNE = (
    PEAK
    + """
import json, sys, time
from mach_store.prune.pruner import prune_checkpoint

before = peak()
start = time.perf_counter()
plan = Path(sys.argv[3]) if len(sys.argv) > 3 else None
report = prune_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), plan=plan)
seconds = time.perf_counter() - start
written = report.expert_bytes + report.other_bytes
print(json.dumps({"seconds": seconds, "before": before, "peak": peak(), "written": written,
                  "layer": report.expert_bytes // report.layers}))
"""
)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.2, help="of the plain checkpoint's experts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        for form, packed, half in (
            ("bf16, every expert", False, False),
            ("bf16, half of them", False, True),
            ("affine 4-bit, every expert", True, False),
        ):
            source = folder / ("packed" if packed else "plain")
            if not source.exists():
                write_source(source, options.gigabytes, packed)
            plan = write_plan(source, folder / "plan.jsonl") if half else None
            for cold in caches():
                figures = beside_copying(
                    "prune",
                    PRUNE,
                    [str(plan)] if plan else [],
                    source,
                    folder / "out",
                    bytes_of=itemgetter("written"),
                    size_column="written_gb",
                    cold=cold,
                    rounds=options.rounds,
                )
                rows.append({"form": form, **figures})
    append_rows("prune", rows)
    slow = any(float(row["ratio"]) < 0.7 for row in rows if row["form"] == "bf16, every expert")
    return 1 if slow or any(int(row["peak_over_start_mb"]) >= 2 * int(row["layer_mb"]) for row in rows) else 0


def write_source(source: Path, gigabytes: float, packed: bool) -> None:
    """A stacked checkpoint of as many layers as it takes; a packed one has as many as a plain one."""
    layers = max(2, round(gigabytes * 1e9 / (EXPERTS * 3 * HIDDEN * WIDTH * 2)))
    config = qwen3_moe_config(
        hidden=HIDDEN, layers=layers, experts=EXPERTS, top_k=8, expert_width=WIDTH, head_dim=64
    )
    if not packed:
        del config["quantization"]
    engine = source.with_name("engine")
    write_synthetic_checkpoint(engine, config)
    write_stacked_checkpoint(engine, source)
    shutil.rmtree(engine)


def write_plan(source: Path, path: Path) -> Path:
    """A plan that keeps every second expert."""
    layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    keep = {str(layer): list(range(layer % 2, EXPERTS, 2)) for layer in range(layers)}
    path.write_text(json.dumps({"candidate_id": "half", "keep": keep}) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(run_command("bench_prune", main))
