"""Figure 4: bytes per second from the disk while decoding from a cold bank, against what the disk gives.

    uv run python tools/bench/bench_disk.py [--inputs DIR] [--checkpoint big] [--rounds 5] [--tokens 48]

The bank holds 12.5 % of the experts, is empty before every answer, and is filled past the page cache
(O_DIRECT). Before and after every answer as many records of the same files are read with O_DIRECT into huge
pages, by as many threads, and nothing is done with them: the ceiling. `of_ceiling` counts the bytes over all
of decoding's time; `waited_of_ceiling` over the time in which decoding stood still for a read, so that the
difference is time for computing. `cpus` is how many of them decoding kept busy. Appends to
docs/bench/disk.csv.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from bench_inputs import Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, median, share_gb, spread
from quietness import Quietness

from mach.commands.process import run_command

SHARE = 0.125
THREADS = (1, 2, 4, 8)
UNCHECKED = "4 threads, no checksums"


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    options = figure_parser(__doc__, rounds=5, tokens=48, checkpoint="big").parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    setting = inputs.setting(options.checkpoint)
    with Contestant("resident", setting) as resident:
        total = resident.loaded["total_bytes"]
    small = replace(setting, bank_gb=share_gb(total, SHARE))
    with ExitStack() as stack:
        contestants = {}
        for threads in THREADS:
            environment = {"LME_DIRECT_IO": "1", "LME_READ_THREADS": str(threads)}
            name = f"{threads} thread{'s' * (threads > 1)}"
            contestants[name] = stack.enter_context(Contestant(name, small, environment)), threads
        unchecked = {"LME_DIRECT_IO": "1", "LME_READ_THREADS": "4", "LME_VERIFY_READS": "0"}
        contestants[UNCHECKED] = stack.enter_context(Contestant(UNCHECKED, small, unchecked)), 4
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
        for number in range(options.rounds + 1):  # the first round warms up and is dropped
            for name, (contestant, threads) in contestants.items():
                told[name].append(_round(contestant, threads, options.tokens, number))
    append_rows(
        "disk",
        [_row(name, answers[1:]) for name, answers in told.items()],
        replacing=("checkpoint",),
        directory=options.output,
        checkpoint=options.checkpoint,
        tokens=options.tokens,
        others=quietness.others(),
    )
    return 0


def _round(contestant: Contestant, threads: int, tokens: int, number: int) -> dict[str, Any]:
    contestant.fresh()
    records = 8 * tokens
    before = contestant.read_plain(records=records, threads=threads)
    answer = contestant.answer(prompt=1, tokens=tokens, number=number)
    ceiling = (before + contestant.read_plain(records=records, threads=threads)) / 2
    wall = answer["bytes_read"] / answer["decode_seconds"] / 1e9
    waited = answer["bytes_read"] / answer["wait_seconds"] / 1e9
    return answer | {
        "ceiling": ceiling,
        "wall": wall,
        "of_ceiling": wall / ceiling,
        "waited_of_ceiling": waited / ceiling,
        "waited": answer["wait_seconds"] / answer["decode_seconds"],
        "cpus": answer["cpu_seconds"] / answer["decode_seconds"],
    }


def _row(name: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    return {
        "what": name,
        "ceiling_gb_s": f"{median(answers, 'ceiling'):.2f}",
        "decode_gb_s": f"{median(answers, 'wall'):.2f}",
        **spread("of_ceiling", [answer["of_ceiling"] for answer in answers]),
        "waited_of_ceiling": f"{median(answers, 'waited_of_ceiling'):.3f}",
        "waited": f"{median(answers, 'waited'):.3f}",
        "cpus": f"{median(answers, 'cpus'):.2f}",
        "tokens_per_second": f"{median(answers, 'decode_tps'):.1f}",
        "mb_per_token": f"{statistics.median(a['bytes_read'] / a['steps'] for a in answers) / 1e6:.1f}",
    }


if __name__ == "__main__":
    sys.exit(run_command("bench_disk", main))
