"""What the forecast of other bank sizes costs, and whether it comes true, side by side in one run.

    uv run python tools/bench/bench_forecast.py [--checkpoint mach-pico] [--rounds 12] [--tokens 400]

An engine with a bank of a quarter of the experts forecasts; another of that size does not; engines with
banks of the sizes forecast give the same answers. Rounds alternate over all of them; speeds and ratios are
medians of the rounds. What it costs is told three ways: by speed, by processor time (steadier where others
use the machine), and as the engine itself measured it. Appends to docs/bench/forecast.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from bench_record import append_rows

from mach.commands.process import run_command
from mach_decode.bank_forecast import BankForecast
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationFigures, GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.bank_cache import BankCache

PROMPTS = ("def reverse(s):", "import json\n", "What is the capital of France?", "class Stack:\n")
SIZES = (0.5, 1.0, 1.5, 2.0)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="mach-pico")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args(arguments)
    whole = _open(options.checkpoint, None)
    assert isinstance(whole.store, BankCache)
    quarter = whole.store.total_bytes / 4e9
    whole.close()
    forecasting = _open(options.checkpoint, quarter)
    others = {size: _open(options.checkpoint, quarter * size) for size in SIZES}
    for engine in others.values():
        _silence(engine)
    speeds: dict[float | None, list[float]] = {None: [], **{size: [] for size in SIZES}}
    counts = {size: [0, 0] for size in SIZES}
    seconds: dict[float | None, list[float]] = {size: [] for size in speeds}
    for turn in range(options.rounds + 1):  # the first round warms up and is dropped
        order: list[tuple[float | None, Engine]] = [(None, forecasting), *others.items()]
        for size, engine in order if turn % 2 else reversed(order):
            before = time.process_time()
            figures = _answer(engine, turn, options.tokens)
            if turn:
                seconds[size].append(time.process_time() - before)
                speeds[size].append(figures.decode_tokens_per_second)
                if size is not None:
                    counts[size][0] += figures.expert_hits
                    counts[size][1] += figures.expert_misses
    told = forecasting.forecast.as_dict()
    ratios = [one / other for one, other in zip(speeds[None], speeds[1.0], strict=True)]
    costs = [one / other for one, other in zip(seconds[None], seconds[1.0], strict=True)]
    rows = []
    for point in told["points"]:
        hits, misses = counts[point["relative"]]
        rows.append(
            {
                "bank": point["relative"],
                "slots": point["bank_slots"],
                "hit_rate_forecast": f"{point['hit_rate']:.3f}",
                "hit_rate": f"{hits / (hits + misses):.3f}",
                "tokens_per_second_forecast": f"{point['tokens_per_second']:.1f}",
                "tokens_per_second": f"{statistics.median(speeds[point['relative']]):.1f}",
                "speed_with_forecast_over_without": f"{statistics.median(ratios):.3f}"
                if point["relative"] == 1
                else "",
                "processor_time_with_over_without": f"{statistics.median(costs):.3f}"
                if point["relative"] == 1
                else "",
                "cost": f"{told['cost']:.4f}" if point["relative"] == 1 else "",
                "followed_tokens": told["tokens"] if point["relative"] == 1 else "",
            }
        )
    append_rows(
        "forecast",
        rows,
        checkpoint=options.checkpoint,
        policy=forecasting.store.stats()["policy"],
        tokens=options.tokens * options.rounds,
    )
    return 0


def _open(checkpoint: str, gigabytes: float | None) -> Engine:
    engine = Engine.load(EngineConfig(checkpoint=checkpoint, expert_cache_gb=gigabytes))
    engine.end_tokens = frozenset()
    return engine


def _silence(engine: Engine) -> None:
    """No forecast: as where there is no bank to look at."""
    engine.forecast = BankForecast(engine.store, engine.route_observers, dispatch="none")


def _answer(engine: Engine, turn: int, tokens: int) -> GenerationFigures:
    request = GenerationRequest(
        prompt=engine.encode(PROMPTS[turn % len(PROMPTS)]),
        max_tokens=tokens,
        sampling=SamplingParams(temperature=0.8, seed=turn),
    )
    figures = list(engine.generate(request))[-1].figures
    assert figures is not None and figures.completion_tokens == tokens
    return figures


if __name__ == "__main__":
    sys.exit(run_command("bench_forecast", main))
