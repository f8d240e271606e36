"""Figure 3, second part: mach and mlx-lm's lazily loaded weights under the same memory limit.

    uv run python tools/bench/bench_limit.py [--inputs DIR] [--tokens 32]

For banks of 50, 25 and 12.5 % the limit is what mach wants to be free before it loads: the bank, the scratch
arena, the other weights (twice, as they are widened on a CPU) and 0.64 GB. It is a memory cgroup, which
counts the page cache too; no file is in it at first. mlx-lm loads the same experts, stacked, with
`lazy=True`; a row without a limit says how fast it is if it may. Appends to docs/bench/limit.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import page_cache
from bench_inputs import Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, ContestantDiedError, Setting, median, share_gb
from memory_limit import MemoryLimit
from quietness import Quietness

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.preflight.memory_needs import LOADER_RESERVE_BYTES
from mach_store.settings import StoreSettings

SHARES = (0.5, 0.25, 0.125)
RESERVE = LOADER_RESERVE_BYTES + 100_000_000
"""What mach's loader keeps for activations and context, and what interpreter and libraries take before."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    options = figure_parser(__doc__, rounds=3, tokens=32).parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    rows = list(_rows(inputs, options.rounds, options.tokens))
    append_rows(
        "limit",
        rows,
        replacing=("checkpoint",),
        directory=options.output,
        checkpoint="big",
        tokens=options.tokens,
        others=quietness.others(),
    )
    return 0


def _rows(inputs: Inputs, rounds: int, tokens: int) -> Iterator[dict[str, object]]:
    mach = inputs.setting("big")
    mlx_lm = replace(mach, engine="mlx-lm", checkpoint=str(inputs.stacked("big")), lazy=True)
    inspection = inspect_checkpoint(resolve_checkpoint(mach.checkpoint))
    with Contestant("resident", mach) as resident:
        total = resident.loaded["total_bytes"]
        yield _row(
            "mach, all experts resident",
            "",
            "none",
            [resident.answer(prompt=16, tokens=tokens, number=n) for n in range(2)],
        )
    slot = total // (inspection.shape.num_experts * len(inspection.shape.moe_layers))
    scratch = slot * StoreSettings.from_environment().scratch_experts
    yield _row("mlx-lm, lazily loaded", "", "none", _answers("mlx-lm", mlx_lm, 2, tokens, None))
    for share in SHARES:
        limit = int(2 * inspection.other_bytes + share * total + scratch + RESERVE)
        streaming = replace(mach, bank_gb=share_gb(total, share))
        for what, setting, environment in (
            ("mach, as shipped", streaming, {}),
            ("mach, reads past the page cache", streaming, {"LME_DIRECT_IO": "1"}),
            ("mach, reads through it", streaming, {"LME_DIRECT_IO": "0"}),
            ("mlx-lm, lazily loaded", mlx_lm, {}),
        ):
            # What the cache holds already is nobody's: pages have to be paid for by who reads them now.
            page_cache.drop(inputs.folder)
            with MemoryLimit(limit) as bound:
                answers = _answers(what, setting, rounds, tokens, bound, environment)
            yield _row(what, f"{share * 100:g}", f"{limit / 1e9:.2f} GB {bound.kind}", answers)


def _answers(
    what: str,
    setting: Setting,
    rounds: int,
    tokens: int,
    bound: MemoryLimit | None,
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, object]] | int:
    """What it answered but for the first round, or the status that it ended with."""
    try:
        with Contestant(what, setting, environment, bound) as contestant:
            return [contestant.answer(prompt=16, tokens=tokens, number=n) for n in range(rounds + 1)][1:]
    except ContestantDiedError as error:
        print(error, file=sys.stderr)
        return error.status


def _row(
    what: str, percent: str, limit: str, answers: Sequence[Mapping[str, object]] | int
) -> dict[str, object]:
    row: dict[str, object] = {"what": what, "bank_percent": percent, "limit": limit}
    if isinstance(answers, int):
        outcome = "killed by the kernel" if answers == -9 else f"ended with status {answers}"
        return row | {"outcome": outcome, "tokens_per_second": "", "peak_mb": ""}
    peak = max(float(str(answer["peak_bytes"])) for answer in answers)
    return row | {
        "outcome": "answers",
        "tokens_per_second": f"{median(answers, 'decode_tps'):.1f}",
        "peak_mb": f"{peak / 1e6:.0f}",
    }


if __name__ == "__main__":
    sys.exit(run_command("bench_limit", main))
