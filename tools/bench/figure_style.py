"""Owns how pictures look: one palette that colour-blind readers can tell apart, and small SVG files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

mpl.use("svg")

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito (2008), Color Universal Design; without yellow, which is faint on white."""
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#777777"
PANEL = (3.4, 2.7)
"""Inches of one panel."""
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "mach",
}


@contextmanager
def picture(path: Path, panels: int, *, rows: int = 1) -> Iterator[Sequence[Axes]]:
    """Panels to draw into, row by row; they are written to `path` (SVG) at the end."""
    with plt.rc_context(_STYLE):
        columns = panels // rows
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(PANEL[0] * columns, PANEL[1] * rows),
            squeeze=False,
            layout="constrained",
        )
        yield list(axes.flat)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def bars(
    axes: Axes, labels: Sequence[str], groups: Sequence[tuple[str, Sequence[float]]], *, digits: int = 2
) -> None:
    """Horizontal bars, the first one on top: for each label one of every group, with its value behind it."""
    height = 0.8 / len(groups)
    for place, (name, values) in enumerate(groups):
        where = [index + (place - (len(groups) - 1) / 2) * height for index in range(len(labels))]
        drawn = axes.barh(where, values, height * 0.92, label=name or None, color=COLOURS[place])
        axes.bar_label(drawn, fmt=f"{{:,.{digits}f}}", fontsize=7, padding=2)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    if len(groups) > 1:
        _legend_below(axes)


def target(axes: Axes, value: float, label: str) -> None:
    """A line that bars should reach."""
    axes.axvline(value, color=GREY, linestyle="--", linewidth=1, label=label)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    # Under the axis' label, where no bar is.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
