"""Draw the pictures of docs/benchmarks.md from the CSV files of the benchmarks.

    uv run python tools/bench/plot_figures.py [--bench docs/bench] [--output docs/bench/figures]

A figure whose CSV is missing, or was written by an older tool, is left out, and said so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench_record import DIRECTORY, read_rows
from figure_style import COLOURS, GREY, MARKERS, bars, picture, target
from matplotlib.axes import Axes

from mach.commands.process import run_command

Row = dict[str, str]
TITLES = {"mach-pico": "mach-pico", "big": "2 GB of experts"}


def main(arguments: Sequence[str]) -> int:
    """Draw what can be drawn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=Path, default=DIRECTORY, help="folder of the CSV files")
    parser.add_argument("--output", type=Path, default=DIRECTORY / "figures", help="folder of the pictures")
    options = parser.parse_args(arguments)
    for name, draw in FIGURES.items():
        path = options.output / f"{name}.svg"
        try:
            draw(options.bench, path)
        except (FileNotFoundError, KeyError) as error:
            print(f"{path}: not drawn: {error!r}")
        else:
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


def kernels(bench: Path, path: Path) -> None:
    """Figure 1: the routed-expert block, and whole models beside other engines."""
    rows = read_rows("kernels", bench)
    one = [row for row in rows if row["what"].startswith("routed") and row["tokens"] == "1"]
    labels = [row["what"].removeprefix("routed experts, ").replace(", ", ",\n") for row in one]
    llama = read_rows("llama", bench)
    base = next(float(row["decode_per_second"]) for row in llama if row["what"].startswith("llama.cpp"))
    with picture(path, 3) as (speed, bandwidth, engines):
        bars(speed, labels, [("", _numbers(one, "speedup"))], digits=1)
        target(speed, 10, "target: 10")
        speed.set(title="Routed experts, one token", xlabel="times stock MLX operations")
        bars(bandwidth, labels, [("", _numbers(one, "of_bandwidth"))])
        target(bandwidth, 0.5, "target: 0.5")
        bandwidth.set(title="Routed experts, one token", xlabel="share of the memory bandwidth")
        bars(engines, _named(llama), [("", _numbers(llama, "decode_per_second"))], digits=0)
        target(engines, base / 2, "target: half of llama.cpp")
        engines.set(title="0.34 GB of 4-bit weights", xlabel="decoded tokens/s")


def resident(bench: Path, path: Path) -> None:
    """Figure 2: everything in memory."""
    rows = read_rows("decode", bench)
    with picture(path, len(TITLES)) as panels:
        for axes, (checkpoint, title) in zip(panels, TITLES.items(), strict=True):
            here = [row for row in rows if row["checkpoint"] == checkpoint]
            _numbers(here, "of_stacked")
            bars(axes, _named(here), [("", _numbers(here, "tokens_per_second"))], digits=0)
            axes.set(title=f"{title}: every expert in memory", xlabel="decoded tokens/s")


def banks(bench: Path, path: Path) -> None:
    """Figure 3: smaller banks, and what they could reach."""
    rows = read_rows("bank", bench)
    with picture(path, len(TITLES)) as panels:
        for axes, (checkpoint, title) in zip(panels, TITLES.items(), strict=True):
            here = [row for row in rows if row["checkpoint"] == checkpoint]
            for number, reads in enumerate(("page cache", "direct")):
                points = [row for row in here if row["reads"] == reads]
                shares, speeds = _numbers(points, "bank_percent"), _numbers(points, "of_resident")
                limits = [s / m for s, m in zip(speeds, _numbers(points, "of_model"), strict=True)]
                look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4}
                axes.plot([100, *shares], [1, *speeds], label=f"measured, {reads}", **look)
                look |= {"marker": "", "linestyle": "--"}
                axes.plot([100, *shares], [1, *limits], label=f"model, {reads}", **look)
            axes.set(title=title, xlabel="bank, % of the experts", ylabel="speed over all resident")
            axes.set_ylim(bottom=0)
            axes.legend(loc="lower right")


def disk(bench: Path, path: Path) -> None:
    """Figure 4: bytes from the disk."""
    rows = [row for row in read_rows("disk", bench) if row["checkpoint"] == "big"]
    with picture(path, 2) as (speed, share):
        ceilings, decoding = _numbers(rows, "ceiling_gb_s"), _numbers(rows, "decode_gb_s")
        bars(speed, _named(rows), [("O_DIRECT alone", ceilings), ("decoding", decoding)])
        speed.set(title="2 GB of experts, cold bank", xlabel="GB/s")
        bars(share, _named(rows), [("", _numbers(rows, "of_ceiling"))])
        target(share, 0.95, "target: 0.95")
        share.set(title="2 GB of experts, cold bank", xlabel="decoding over O_DIRECT alone")


def prefill(bench: Path, path: Path) -> None:
    """Figure 5: long prompts."""
    rows = read_rows("prefill", bench)
    with picture(path, len(TITLES)) as panels:
        for axes, (checkpoint, title) in zip(panels, TITLES.items(), strict=True):
            here = [row for row in rows if row["checkpoint"] == checkpoint]
            longest = max(int(row["prompt_tokens"]) for row in here)  # mlx-lm has a shorter one
            here = [row for row in here if int(row["prompt_tokens"]) == longest]
            bars(axes, _named(here), [("", _numbers(here, "of_resident"))])
            target(axes, 0.8, "target: 0.8")
            axes.set(title=f"{title}: {longest:,} tokens", xlabel="prefill speed over all resident")


def growth(bench: Path, path: Path) -> None:
    """Figure 6: one axis at a time."""
    rows = read_rows("growth", bench)
    labels = {"experts": "experts per layer", "layers": "layers", "context": "tokens of context"}
    labels["bank"] = "bank, % of the experts"
    with picture(path, 2 * len(labels), rows=2) as panels:
        for place, (axis, label) in enumerate(labels.items()):
            here = [row for row in rows if row["axis"] == axis]
            for axes, column, unit in (
                (panels[place], "tokens_per_second", "decoded tokens/s"),
                (panels[place + len(labels)], "peak_mb", "peak memory, MB"),
            ):
                _lines(axes, axis, here, column)
                axes.set(xlabel=label, ylabel=unit)
                axes.set_ylim(bottom=0)


def _lines(axes: Axes, axis: str, rows: Sequence[Row], column: str) -> None:
    if axis == "bank":
        axes.plot(_numbers(rows, "value"), _numbers(rows, column), color=GREY, marker="o", markersize=4)
        return
    for number, (percent, name) in enumerate((("100", "all resident"), ("25", "bank of 25 %"))):
        points = [row for row in rows if row["bank_percent"] == percent]
        axes.plot(
            _numbers(points, "value"),
            _numbers(points, column),
            color=COLOURS[number],
            marker=MARKERS[number],
            markersize=4,
            label=name,
        )
    axes.legend()


def _named(rows: Sequence[Row]) -> list[str]:
    return [row["what"].replace(", ", ",\n").replace("float32 ", "float32\n") for row in rows]


def _numbers(rows: Sequence[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


FIGURES: dict[str, Callable[[Path, Path], None]] = {
    "figure-1": kernels,
    "figure-2": resident,
    "figure-3": banks,
    "figure-4": disk,
    "figure-5": prefill,
    "figure-6": growth,
}

if __name__ == "__main__":
    sys.exit(run_command("plot_figures", main))
