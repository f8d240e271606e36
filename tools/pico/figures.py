"""Draw the training curve and the use of the experts as SVG.

In: metrics.json of training.py, the JSON document of evaluate.py. Out: figures/training.svg,
     figures/experts.svg.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "mach-pico"

from matplotlib import pyplot as plt  # noqa: E402 - the backend has to be chosen first

HERE = Path(__file__).parent


def save(figure: Any, path: Path) -> None:
    """Write without a date, so that equal data gives an equal file."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def training_curve(metrics: dict[str, Any], path: Path) -> None:
    """Held-out bits per byte and smoothed training loss over tokens."""
    history = metrics["history"]
    figure, left = plt.subplots(figsize=(7, 3.6))
    size = 10
    groups = [history[at : at + size] for at in range(0, len(history), size)]
    tokens = [group[-1]["tokens"] / 1e6 for group in groups]
    left.plot(
        tokens,
        [sum(r["loss"] for r in group) / len(group) for group in groups],
        color="0.6",
        label="training loss",
    )
    left.set(xlabel="million tokens", ylabel="training loss, nats per token", ylim=(1, 4))
    right = left.twinx()
    marks = [record for record in history if "held_out" in record]
    last = {"tokens": history[-1]["tokens"], "held_out": metrics["final"]["held_out"]}
    for name, text in (("code", "held-out files"), ("strange", "held-out packages")):
        for suffix, style in (("", "o-"), ("_4bit", "x--")):
            values = [mark["held_out"][f"{name}_bits_per_byte{suffix}"] for mark in [*marks, last]]
            label = text + (", 4 bit" if suffix else ", bf16")
            color = "tab:blue" if name == "code" else "tab:orange"
            right.plot(
                [mark["tokens"] / 1e6 for mark in [*marks, last]], values, style, color=color, label=label
            )
    start = metrics["plan"]["quantised_from"] * metrics["plan"]["seconds"]
    tail = next(record["tokens"] for record in history if record["seconds"] >= start) / 1e6
    left.axvline(tail, color="0.8", linestyle=":")
    left.text(tail, 3.9, " quantisation-aware", fontsize=7, va="top")
    right.set(ylabel="bits per byte", ylim=(0.55, 0.85))
    right.legend(fontsize=7, loc="upper center")
    save(figure, path)


def expert_use(evaluation: dict[str, Any], path: Path) -> None:
    """Share of routes per expert, ranked, one line per layer."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for index, layer in enumerate(evaluation["experts"]):
        shares = sorted(layer["shares"], reverse=True)
        axes.plot(
            range(1, len(shares) + 1), [share * len(shares) for share in shares], label=f"layer {index}"
        )
    axes.axhline(1, color="0.8", linestyle=":")
    axes.set(xlabel="expert, by rank", ylabel="load, 1 = even")
    axes.legend(fontsize=7)
    save(figure, path)


def main() -> None:
    """Draw both figures."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--metrics", type=Path, default=Path("build/out/metrics.json"))
    arguments.add_argument("--evaluation", type=Path, default=Path("build/evaluation.json"))
    options = arguments.parse_args()
    out = HERE / "figures"
    out.mkdir(exist_ok=True)
    training_curve(json.loads(options.metrics.read_text()), out / "training.svg")
    expert_use(json.loads(options.evaluation.read_text()), out / "experts.svg")


if __name__ == "__main__":
    main()
