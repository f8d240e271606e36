"""Figure 6: how tokens per second and memory grow with experts, layers, context and bank, one at a time.

    uv run python tools/bench/bench_growth.py [--inputs DIR] [--rounds 3] [--tokens 48]

The base is a random checkpoint with hidden and expert width 512, 6 layers, 32 experts, top 4, and 128 tokens
of context; replayed routes, as everywhere. Each point is measured with every expert in memory and with a bank
of a quarter of them, which reads through the page cache; memory is the most that the process had. Appends to
docs/bench/growth.csv.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench_inputs import PICO, Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, Setting, alternate, median, share_gb
from quietness import Quietness

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

EXPERTS, LAYERS, CONTEXT = 32, 6, 128
QUARTER = 0.25
AXES: dict[str, tuple[int, ...]] = {
    "experts": (32, 64, 128),
    "layers": (3, 6, 12, 24),
    "context": (128, 512, 1024, 2048, 4000),
}
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    options = figure_parser(__doc__, rounds=3, tokens=48).parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    with tempfile.TemporaryDirectory() as scratch:
        growth = _Growth(Path(scratch), inputs, options.rounds, options.tokens)
        rows = [row for axis in AXES for row in growth.axis(axis)]
        rows += growth.banks()
    append_rows(
        "growth",
        rows,
        replacing=("axis",),
        directory=options.output,
        tokens=options.tokens,
        others=quietness.others(),
    )
    return 0


class _Growth:
    """Measures one axis after the other."""

    def __init__(self, scratch: Path, inputs: Inputs, rounds: int, tokens: int) -> None:
        self._scratch, self._inputs, self._rounds, self._tokens = scratch, inputs, rounds, tokens

    def axis(self, axis: str) -> Iterator[dict[str, object]]:
        """Rows of `experts`, `layers` or `context`."""
        for value in AXES[axis]:
            setting = self._setting(
                experts=value if axis == "experts" else EXPERTS, layers=value if axis == "layers" else LAYERS
            )
            context = value if axis == "context" else CONTEXT
            yield from self._measure(setting, (1.0, QUARTER), context, axis, str(value))

    def banks(self) -> Iterator[dict[str, object]]:
        """Rows of `bank`."""
        setting = self._setting(experts=EXPERTS, layers=LAYERS)
        yield from self._measure(setting, SHARES, CONTEXT, "bank", "")

    def _measure(
        self, setting: Setting, shares: Sequence[float], context: int, axis: str, value: str
    ) -> Iterator[dict[str, object]]:
        with ExitStack() as stack:
            whole = stack.enter_context(Contestant("1.0", setting))
            total = whole.loaded["total_bytes"]
            contestants = [whole]
            for share in shares[1:]:
                small = replace(setting, bank_gb=share_gb(total, share))
                contestants.append(stack.enter_context(Contestant(str(share), small)))
            told = alternate(contestants, self._rounds, prompt=context, tokens=self._tokens)
            for share, contestant in zip(shares, contestants, strict=True):
                answers = told[contestant.name]
                needed = sum(answer["hits"] + answer["misses"] for answer in answers)
                yield {
                    "axis": axis,
                    "value": value or f"{share * 100:g}",
                    "bank_percent": f"{share * 100:g}",
                    "bank_mb": f"{contestant.loaded['bank_bytes'] / 1e6:.0f}",
                    "tokens_per_second": f"{median(answers, 'decode_tps'):.1f}",
                    "prefill_per_second": f"{median(answers, 'prefill_tps'):.0f}",
                    "hit_rate": f"{sum(answer['hits'] for answer in answers) / needed:.3f}",
                    "peak_mb": f"{max(answer['peak_bytes'] for answer in answers) / 1e6:.0f}",
                }

    def _setting(self, *, experts: int, layers: int) -> Setting:
        output = self._scratch / f"{experts}-{layers}"
        if not output.exists():
            config = qwen3_moe_config(
                hidden=512,
                layers=layers,
                experts=experts,
                top_k=4,
                expert_width=512,
                head_dim=64,
                context=4096,
                group_size=64,
            )
            write_synthetic_checkpoint(output, config, tokenizer_from=resolve_checkpoint(PICO))
        return replace(self._inputs.setting("big"), checkpoint=str(output))


if __name__ == "__main__":
    sys.exit(run_command("bench_growth", main))
