"""Figure 5: prefill with a bank of 12.5 % of the experts against prefill with all of them in memory.

    uv run python tools/bench/bench_prefill.py [--inputs DIR] [--checkpoint big] [--rounds 3] [--prompt 2048]

`page cache` reads files that are in memory, so that the disk is not the limit; `direct` reads past it. The
engine cuts a prompt into chunks by the model's sizes; resident prefill is tried in chunks of 512 too, and
`of_resident` is over the faster of both in each round. mach-pico's context is 2,048, its prompt 2,000. mlx-lm
(float32 activations) computes a shorter prompt: its products would take minutes for a long one. Appends to
docs/bench/prefill.csv.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import page_cache
from bench_inputs import PICO, Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, alternate, median, ratios, share_gb, spread
from quietness import Quietness

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint

SHARE = 0.125
LONGEST = {PICO: 2000, "big": 2048}
SHORT = 64
"""Prompt tokens for mlx-lm."""
RESIDENT, LONG_CHUNKS = "all experts resident", "all experts resident, chunks of 512"
STACKED, MLX_LM = "stacked", "mlx-lm, float32 activations"


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = figure_parser(__doc__, rounds=3, checkpoint="big")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens, at most 2,000 for mach-pico")
    options = parser.parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    prompt = min(options.prompt, LONGEST[options.checkpoint])
    setting = inputs.setting(options.checkpoint)
    page_cache.fill(resolve_checkpoint(setting.checkpoint) / "expert_sidecar")
    stacked = replace(setting, checkpoint=str(inputs.stacked(options.checkpoint)))
    with ExitStack() as stack:
        resident = stack.enter_context(Contestant(RESIDENT, setting))
        small = replace(setting, bank_gb=share_gb(resident.loaded["total_bytes"], SHARE))
        contestants = [
            resident,
            stack.enter_context(Contestant(LONG_CHUNKS, replace(setting, prefill_chunk=512))),
            stack.enter_context(Contestant("bank of 12.5 %, page cache", small, {"LME_DIRECT_IO": "0"})),
            stack.enter_context(Contestant("bank of 12.5 %, direct", small, {"LME_DIRECT_IO": "1"})),
            stack.enter_context(Contestant(STACKED, replace(stacked, residency="stacked"))),
        ]
        for contestant in contestants:  # warm up
            contestant.answer(prompt=SHORT, tokens=2, number=0)
        told = alternate(contestants, options.rounds, prompt=prompt, tokens=2, warm_up=0)
        stock = stack.enter_context(Contestant(MLX_LM, replace(stacked, engine="mlx-lm")))
        short = alternate([resident, stock], 1, prompt=min(SHORT, prompt), tokens=2, warm_up=0)
    pairs = zip(told[RESIDENT], told[LONG_CHUNKS], strict=True)
    best = [max(pair, key=lambda answer: float(answer["prefill_tps"])) for pair in pairs]
    rows = [_row(name, answers, best, prompt) for name, answers in told.items()]
    rows += [_row(name, answers, short[RESIDENT], min(SHORT, prompt)) for name, answers in short.items()]
    append_rows(
        "prefill",
        rows,
        replacing=("checkpoint",),
        directory=options.output,
        checkpoint=options.checkpoint,
        others=quietness.others(),
    )
    return 0


def _row(
    name: str, answers: Sequence[Mapping[str, Any]], resident: Sequence[Mapping[str, Any]], prompt: int
) -> dict[str, object]:
    read = statistics.median(answer.get("prefill_bytes", 0) for answer in answers)
    return {
        "what": name,
        "prompt_tokens": prompt,
        "tokens_per_second": f"{median(answers, 'prefill_tps'):.1f}",
        **spread("of_resident", ratios(answers, resident, "prefill_tps")),
        "gb_read": f"{read / 1e9:.2f}",
        "peak_mb": f"{max(answer['peak_bytes'] for answer in answers) / 1e6:.0f}",
    }


if __name__ == "__main__":
    sys.exit(run_command("bench_prefill", main))
