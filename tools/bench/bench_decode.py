"""Figures 1 and 2: decoding with every expert in memory: streaming, stacked, and mlx-lm on the same weights.

    uv run python tools/bench/bench_decode.py [--inputs DIR] [--checkpoint mach-pico] [--rounds 7]

All decode greedily. mlx-lm runs with float32 activations, its fastest setting on a CPU (bfloat16, its
default, is several times slower there: its own row). `ratio` is over mlx-lm's best, `of_stacked` over mach's
stacked mode, each the median of the rounds' own ratios. Appends to docs/bench/decode.csv.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from bench_inputs import PICO, Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, alternate, median, ratios, spread
from quietness import Quietness

from mach.commands.process import run_command

AS_LOADED = "mlx-lm, as loaded"
BEST = "mlx-lm, float32 activations"
STACKED = "mach, stacked"
STREAMING = "mach, streaming, bank of 100 %"
SLOW = 16
"""Tokens of an answer where mlx-lm takes its time; half of them, and of the prompt, in bfloat16."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    options = figure_parser(__doc__, rounds=7, tokens=96, checkpoint=PICO).parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    setting = replace(inputs.setting(options.checkpoint), temperature=0.0)
    stacked = replace(setting, checkpoint=str(inputs.stacked(options.checkpoint)))
    mlx_lm = replace(stacked, engine="mlx-lm")
    with Contestant(AS_LOADED, replace(mlx_lm, float32=False)) as slow:
        as_loaded = alternate([slow], 1, prompt=4, tokens=SLOW // 2, warm_up=0)[AS_LOADED]
    with ExitStack() as stack:
        streaming = stack.enter_context(Contestant(STREAMING, setting))
        resident = stack.enter_context(Contestant(STACKED, replace(stacked, residency="stacked")))
        stock = stack.enter_context(Contestant(BEST, mlx_lm))
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in (BEST, STACKED, STREAMING)}
        for number in range(options.rounds + 1):  # the first round warms up and is dropped
            for contestant in (stock, resident, streaming) if number % 2 else (streaming, resident, stock):
                tokens = SLOW if contestant is stock and options.checkpoint != PICO else options.tokens
                told[contestant.name].append(contestant.answer(prompt=16, tokens=tokens, number=number))
    kept = {name: answers[1:] for name, answers in told.items()}
    rows = [_row(name, answers, kept[BEST], kept[STACKED]) for name, answers in kept.items()]
    rows.insert(0, _row(AS_LOADED, as_loaded, kept[BEST][:1], kept[STACKED][:1]))
    append_rows(
        "decode",
        rows,
        replacing=("checkpoint",),
        directory=options.output,
        checkpoint=options.checkpoint,
        tokens=options.tokens,
        others=quietness.others(),
    )
    return 0


def _row(
    name: str,
    answers: Sequence[Mapping[str, Any]],
    best: Sequence[Mapping[str, Any]],
    stacked: Sequence[Mapping[str, Any]],
) -> dict[str, object]:
    return {
        "what": name,
        "tokens_per_second": f"{median(answers, 'decode_tps'):.1f}",
        **spread("ratio", ratios(answers, best, "decode_tps")),
        "of_stacked": f"{statistics.median(ratios(answers, stacked, 'decode_tps')):.3f}",
        "peak_mb": f"{max(answer['peak_bytes'] for answer in answers) / 1e6:.0f}",
    }


if __name__ == "__main__":
    sys.exit(run_command("bench_decode", main))
