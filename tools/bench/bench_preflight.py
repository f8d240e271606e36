"""Compares what `mach check` predicts with what `mach-generate` does: peak memory and decode speed.

    python tools/bench/bench_preflight.py CHECKPOINT [CHECKPOINT ...]

Each checkpoint runs with every expert cached, with a half and with a quarter (and resident, if its layout
allows), with a short and a long prompt; the prediction is made for the same number of tokens. The disk is
measured first. Appends to docs/bench/preflight.csv. Exit status 1 if a memory prediction is off by more than
10 %.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_record import append_rows

SCRIPTS = Path(sys.executable).parent
SENTENCE = "def reverse(s): return the reversed string and print it "
TOKENS = 24


def predicted(checkpoint: str, cache: str, *arguments: str) -> dict[str, Any]:
    """The report of `mach check --json`."""
    command = [str(SCRIPTS / "mach"), "check", checkpoint, "--json", "--cache-dir", cache, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measured(checkpoint: str, prompt: str, *arguments: str) -> dict[str, float]:
    """Peak memory in bytes, decoded tokens per second, prompt tokens and hit rate of one run."""
    command = [str(SCRIPTS / "mach-generate"), checkpoint, "--prompt", prompt, "--max-tokens", str(TOKENS)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    line = done.stderr.strip().splitlines()[-1]
    patterns = {
        "peak": r"peak memory (\d+) MB",
        "speed": r"decode \d+ tokens, ([\d.]+) tok/s",
        "prompt": r"prompt (\d+) tokens",
        "hits": r"hit rate ([\d.]+)",
    }
    return {name: float(re.search(pattern, line)[1]) for name, pattern in patterns.items()}


def compare(checkpoint: str, cache: str, mode: str, share: float, repeats: int) -> dict[str, Any]:
    """One row: a run, and the prediction for exactly its tokens."""
    whole = predicted(checkpoint, cache)["memory"]["estimate"]["expert_bytes_in_memory"]
    budget = [] if mode == "resident" else ["--expert-cache-gb", f"{whole * share / 1e9:.6f}"]
    flag = "--no-streaming" if mode == "resident" else "--streaming"
    run = measured(checkpoint, SENTENCE * repeats, flag, *budget)
    report = predicted(checkpoint, cache, "--context-length", str(int(run["prompt"]) + TOKENS), *budget)
    memory = report["memory"]["estimate"][mode]["working_set_bytes"] / 1e6
    slow, fast = report["speed"]["tokens_per_second"] if mode == "streaming" else ("", "")
    return {
        "checkpoint": Path(checkpoint).name,
        "mode": mode,
        "expert_share": share,
        "prompt_tokens": int(run["prompt"]),
        "predicted_mb": round(memory),
        "peak_mb": round(run["peak"]),
        "memory_ratio": round(memory / run["peak"], 3),
        "predicted_slow": slow,
        "predicted_fast": fast,
        "tokens_per_second": run["speed"],
        "hit_rate": run["hits"],
    }


def main() -> int:
    """Run every case, print a table, write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--long", type=int, default=20, help="sentences in the long prompt")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for checkpoint in options.checkpoints:
            report = predicted(checkpoint, cache, "--measure-disk")
            cases = [("streaming", 1.0, 1), ("streaming", 0.5, 1), ("streaming", 0.25, 1)]
            cases += [("streaming", 0.5, options.long)]
            if report["layout"]["kind"] == "stacked":
                cases.append(("resident", 1.0, 1))
            for mode, share, repeats in cases:
                row = compare(checkpoint, cache, mode, share, repeats)
                rows.append(row)
    append_rows("preflight", rows)
    return 1 if any(abs(row["memory_ratio"] - 1) > 0.1 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
