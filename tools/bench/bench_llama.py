"""Figure 1, third part: mach and mlx-lm at 4 bits against llama.cpp's Q4_0, on random models of one shape.

    uv run python tools/bench/bench_llama.py --llama-python ENV/bin/python [--rounds 7] [--prompt 512]

0.34 GB of weights: 12 layers of 32 experts, hidden 1024, width 512, top 4. Everything is in memory, every
engine decodes greedily and has as many threads as there are CPUs. llama-cpp-python and gguf are no
dependencies of this repository; an environment for them, which compiles llama.cpp in some four minutes:

    python -m venv ENV && ENV/bin/pip install llama-cpp-python gguf numpy

Appends to docs/bench/llama.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_inputs import PICO, Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, median, ratios, spread
from quietness import Quietness

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

CHILD = Path(__file__).with_name("llama_child.py")
CONFIG = qwen3_moe_config(
    hidden=1024,
    layers=12,
    experts=32,
    top_k=4,
    expert_width=512,
    head_dim=64,
    context=4096,
    group_size=64,
)
SHORT = 64
"""Prompt tokens for mlx-lm, whose products take minutes for more."""
LLAMA, MLX_LM = "llama.cpp, Q4_0", f"mlx-lm, float32 activations, {SHORT}-token prompt"


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = figure_parser(__doc__, rounds=7, tokens=48)
    parser.add_argument(
        "--llama-python", required=True, help="interpreter that has llama-cpp-python and gguf"
    )
    parser.add_argument("--prompt", type=int, default=512)
    options = parser.parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    with tempfile.TemporaryDirectory() as scratch:
        rows, version = _rows(Path(scratch), inputs, options)
    append_rows(
        "llama",
        rows,
        replacing=("prompt_tokens",),
        directory=options.output,
        llama_cpp_python=version,
        prompt_tokens=options.prompt,
        tokens=options.tokens,
        others=quietness.others(),
    )
    return 0


def _rows(scratch: Path, inputs: Inputs, options: argparse.Namespace) -> tuple[list[dict[str, str]], str]:
    sliced, stacked = scratch / "sliced", scratch / "stacked"
    write_synthetic_checkpoint(sliced, CONFIG, tokenizer_from=resolve_checkpoint(PICO))
    write_stacked_checkpoint(sliced, stacked)
    mach = replace(inputs.setting("big"), checkpoint=str(sliced), replay=False)
    other = replace(mach, checkpoint=str(stacked))
    command = [
        options.llama_python,
        str(CHILD),
        json.dumps(CONFIG | {"threads": os.cpu_count()}),
        str(scratch),
    ]
    with (
        Contestant("mach, streaming, all resident", mach) as streaming,
        Contestant("mach, stacked", replace(other, residency="stacked")) as resident,
        Contestant(MLX_LM, replace(other, engine="mlx-lm")) as mlx_lm,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        llama = _Llama(process)
        told: dict[str, list[dict[str, Any]]] = {}
        for number in range(options.rounds + 1):  # the first round warms up and is dropped
            for contestant in (streaming, resident):
                answer = contestant.answer(prompt=options.prompt, tokens=options.tokens, number=number)
                told.setdefault(contestant.name, []).append(answer)
            answer = llama.answer(prompt=options.prompt, tokens=options.tokens)
            told.setdefault(LLAMA, []).append(answer)
            if number < 2:  # it is slow, and steady
                answer = mlx_lm.answer(prompt=min(SHORT, options.prompt), tokens=16, number=number)
                told.setdefault(MLX_LM, []).append(answer)
        process.communicate()
    base = told[LLAMA][1:]
    rows = [_row(name, answers[1:], base[: len(answers) - 1]) for name, answers in told.items()]
    return rows, str(llama.loaded["version"])


def _row(
    name: str, answers: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    return {
        "what": name,
        "decode_per_second": f"{median(answers, 'decode_tps'):.1f}",
        **spread("of_llama_cpp", ratios(answers, base, "decode_tps")),
        "prefill_per_second": f"{median(answers, 'prefill_tps'):.0f}",
        "prefill_of_llama_cpp": f"{statistics.median(ratios(answers, base, 'prefill_tps')):.3f}",
    }


class _Llama:
    """llama.cpp in its own process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.loaded = self._hear()

    def answer(self, **command: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(0, "llama_child.py ended; see what it said above", str(CHILD))
        told: dict[str, Any] = json.loads(line)
        return told


if __name__ == "__main__":
    sys.exit(run_command("bench_llama", main))
