"""Owns how a replayed trace looks: three figures. matplotlib is imported here and nowhere else."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from mach.commands.text_table import printable
from mach_store.trace.bank_sizes import all_experts
from mach_store.trace.route_use import LONGEST, RouteUse
from mach_store.trace.trace_header import TraceHeader
from mach_store.trace.trace_replay import BELADY, TraceReplay

# Okabe and Ito's colours, which people with every kind of colour vision tell apart; shapes differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"
_GREY = "#555555"
_SIZE = (7.5, 4.5)
_DPI = 110


def hit_rates(result: TraceReplay) -> Figure:
    """Hit rate of each policy against the size of the bank, beside the optimum."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    by_policy: dict[str, list[tuple[float, float]]] = {}
    for bank in result.banks:
        point = (result.part(bank), bank.tally.total.hit_rate)
        by_policy.setdefault(bank.policy, []).append(point)
    styles = zip(_COLOURS, _MARKERS, strict=True)
    for policy, points in by_policy.items():
        x, y = zip(*sorted(points), strict=True)
        if policy == BELADY:
            axes.plot(x, y, color="black", linestyle="--", linewidth=1.6, label="belady (optimum)")
        else:
            colour, marker = next(styles)
            axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=policy)
    slots = result.header.run.bank_slots
    if slots:
        part = sum(slots) / all_experts(result.header)
        axes.axvline(part, color=_GREY, linestyle=":", linewidth=1.2, label="bank of the recording")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("bank (part of all experts)")
    axes.set_ylabel("hit rate (experts needed by a pass)")
    axes.set_title(_title("Hit rate against the size of the bank", result.header), fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=True)
    return figure


def expert_map(header: TraceHeader, use: RouteUse) -> Figure:
    """How often each expert was used while decoding: layers × experts."""
    layers = len(header.layers)
    height = min(12.0, max(2.8, 1.6 + 0.16 * layers))
    figure = Figure(figsize=(_SIZE[0], height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(use.frequency, aspect="auto", interpolation="nearest", cmap="cividis", vmin=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    names = FuncFormatter(lambda at, _: str(header.layers[int(at)]) if 0 <= at < layers else "")
    axes.yaxis.set_major_formatter(names)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_title(_title("How often each expert is used", header), fontsize=11)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("part of the decoded tokens")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def reuse(header: TraceHeader, use: RouteUse) -> Figure:
    """How soon a used expert is used again, beside a router that chooses at random."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    tokens = np.arange(1, LONGEST)
    axes.plot(
        tokens, use.reused_within[:-1], color=_COLOURS[0], linewidth=1.8, label="this trace, all layers"
    )
    even = 1 - (1 - header.top_k / header.experts) ** tokens
    axes.plot(tokens, even, color=_COLOURS[1], linestyle="--", linewidth=1.6, label="routes at random")
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, LONGEST)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("decoded tokens since the expert's last use, at most")
    axes.set_ylabel("part of the uses")
    axes.set_title(_title("How soon an expert is used again", header), fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=True)
    return figure


def _title(what: str, header: TraceHeader) -> str:
    # "$" would begin a formula.
    name = printable(header.checkpoint)[:60].replace("$", r"\$")
    return f"{what}\n{name}: {len(header.layers)} layers of {header.experts} experts, top {header.top_k}"
