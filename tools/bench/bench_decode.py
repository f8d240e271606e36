"""Streaming decode against mlx-lm's resident decode of the same 4-bit weights, side by side in one run.

    uv run python tools/bench/bench_decode.py [--checkpoint mach-pico] [--rounds 7] [--tokens 96]

mlx-lm runs with float32 activations, its fastest setting on a CPU (bfloat16, its default, is several times
slower there: the first line of the table). Rounds alternate; figures are medians. Appends to
docs/bench/decode.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
from bench_record import append_rows
from mlx_lm import stream_generate

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.loader import load
from mach_decode.request import GenerationFigures, GenerationRequest
from mach_store.bank_cache import BankCache
from mach_store.engine_checkpoint import write_stacked_checkpoint

PROMPT = '"""Tools for reading and writing small configuration files."""\n\nimport json\nimport os\n\n\ndef '


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="mach-pico")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        stacked = Path(scratch) / "stacked"
        write_stacked_checkpoint(resolve_checkpoint(options.checkpoint), stacked)
        whole = Engine.load(EngineConfig(checkpoint=options.checkpoint))
        assert isinstance(whole.store, BankCache)
        everything = whole.store.total_bytes
        quarter = Engine.load(
            EngineConfig(checkpoint=options.checkpoint, expert_cache_gb=everything / 4 / 1e9)
        )
        resident = Engine.load(EngineConfig(checkpoint=str(stacked), expert_residency="stacked"))
        slow = _mlx_lm(stacked, None, options.tokens)
        fast = _mlx_lm(stacked, mx.float32, options.tokens)
        figures: dict[str, GenerationFigures] = {}
        contestants: dict[str, Callable[[], float]] = {
            "mlx-lm resident, float32 activations": fast,
            "mach stacked": _mach("stacked", resident, options.tokens, figures),
            "mach streaming, bank of 100 %": _mach("whole", whole, options.tokens, figures),
            "mach streaming, bank of 25 %": _mach("quarter", quarter, options.tokens, figures),
        }
        speeds: dict[str, list[float]] = {"mlx-lm resident, as loaded": [slow() for _ in range(2)][1:]}
        for _ in range(options.rounds + 1):  # the first round warms up and is dropped
            for name, contestant in contestants.items():
                speeds.setdefault(name, []).append(contestant())
    base = statistics.median(speeds["mlx-lm resident, float32 activations"][1:])
    rows = []
    for name, values in speeds.items():
        speed = statistics.median(values[1:] or values)
        rows.append({"what": name, "tokens_per_second": f"{speed:.1f}", "ratio": f"{speed / base:.3f}"})
    cold = figures["quarter"]
    rows[-1] |= {"hit_rate": f"{cold.hit_rate:.3f}", "mb_read": f"{cold.bytes_read / 1e6:.1f}"}
    append_rows("decode", rows, checkpoint=options.checkpoint, tokens=options.tokens)
    return 0


def _mach(
    key: str, engine: Engine, tokens: int, figures: dict[str, GenerationFigures]
) -> Callable[[], float]:
    request = GenerationRequest(prompt=engine.encode(PROMPT), max_tokens=tokens)

    def run() -> float:
        event = list(engine.generate(request))[-1]
        assert event.figures is not None and event.figures.completion_tokens == tokens
        figures[key] = event.figures
        return event.figures.decode_tokens_per_second

    return run


def _mlx_lm(directory: Path, dtype: mx.Dtype | None, tokens: int) -> Callable[[], float]:
    model, tokenizer = load(str(directory))
    if dtype is not None:
        model.set_dtype(dtype)
        mx.eval(model.parameters())

    def run() -> float:
        last = list(stream_generate(model, tokenizer, PROMPT, max_tokens=tokens))[-1]
        return float(last.generation_tps)

    return run


if __name__ == "__main__":
    sys.exit(run_command("bench_decode", main))
