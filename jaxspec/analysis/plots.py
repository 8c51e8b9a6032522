"""Plots. Each function returns a figure and, with a path, writes it to a file; no matplotlib backend is selected."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from jaxspec.analysis._probe import ExitProbe
from jaxspec.analysis.whatif import REFERENCE, Point, WhatIf
from jaxspec.generation.trace import VERDICT, Span

COLOURS = {
    "prefix": "#4878a8",
    "suffix": "#86b0d6",
    "whole": "#86b0d6",
    "step": "#4878a8",
    "ahead": "#f0b27a",
    "rollout": "#e1812c",
    "select": "#b85c12",
}


def timeline(
    spans: Sequence[Span],
    path: str | Path | None = None,
    first_step: int = 2,
    num_steps: int = 4,
    title: str = "Mirror-SD on two meshes",
) -> Figure:
    """Draw the programs of target and draft over some steps, with messages and verdicts as arrows."""
    shown = [s for s in spans if first_step <= s.step < first_step + num_steps]
    origin, lanes = min(s.start for s in shown), {"draft": 0, "target": 1}
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots()
    labelled: set[str] = set()
    for span in shown:
        left, width = 1e3 * (span.start - origin), 1e3 * (span.end - span.start)
        axes.barh(
            lanes[span.lane],
            width,
            left=left,
            height=0.5,
            color=COLOURS[span.name],
            edgecolor="white",
            linewidth=0.5,
            label=None if span.name in labelled else span.name,
        )
        labelled.add(span.name)
    _rendezvous(axes, shown, origin, ("prefix",), "#2a7f3f", "message (exit → draft)")
    _rendezvous(axes, shown, origin, VERDICT, "#9b2335", "verdict (target → draft)")
    axes.set_yticks(list(lanes.values()), list(lanes))
    axes.set(xlabel="milliseconds", title=f"{title}: {num_steps} steps", ylim=(-0.5, 1.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return _saved(figure, path)


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    """Write the figure to a file if there is a path, and return it."""
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure


def _rendezvous(
    axes: Axes, spans: Sequence[Span], origin: float, names: tuple[str, ...], colour: str, label: str
) -> None:
    """Draw arrows from the target lane to the draft lane at the end of every span of these names."""
    for index, span in enumerate(s for s in spans if s.name in names):
        at = 1e3 * (span.end - origin)
        axes.annotate("", (at, 0.27), (at, 0.73), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.3})
        axes.plot([], [], color=colour, marker=7, linestyle="none", label=label if index == 0 else None)


def acceptance(
    final: Mapping[str, float],
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    window: int,
    path: str | Path | None = None,
) -> Figure:
    """Draw accepted length: on validation roles against rounds (left), on the clients' unseen text (right)."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = dict(zip(final, ("#999999", "#e1812c", "#4878a8", "#6a9f58"), strict=False))
    for name, (rounds, values) in curves.items():
        left.plot(rounds, values, marker="o", markersize=3, color=colours[name], label=name)
    left.set(xlabel="round (centralised: the same number of samples)", ylabel=f"accepted tokens a step, of {window}")
    left.set_title("Text of validation roles, best learning rate of each", fontsize=10)
    left.legend(frameon=False)
    bars = right.bar(list(final), list(final.values()), color=[colours[name] for name in final])
    right.bar_label(bars, fmt="%.2f", padding=2)
    right.set_title("Unseen text of the clients' roles", fontsize=10)
    right.set_ylim(0, max(final.values()) * 1.15)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def probe(probes: Sequence[ExitProbe], path: str | Path | None = None) -> Figure:
    """Draw how well exits predict the target against their layer: top-1 and top-κ, Ω_κ, and Ω′."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    layers, least, most = [row.layer for row in probes], min(probes[0].contained), max(probes[0].contained)
    lines = (
        (f"target's token among the exit's first {least}", "contained", least, "#999999"),
        (f"… among its first {most}", "contained", most, "#4878a8"),
        (f"target's probability of its first {most}", "mass", most, "#86b0d6"),
        (f"correction among its first {most}, where one is needed", "at_correction", most, "#6a9f58"),
        (f"windows foreseen with {most} candidates per position", "foreseen", most, "#e1812c"),
    )
    for label, share, kappa, colour in lines:
        is_double = label.startswith("…") and least == most
        if is_double or not getattr(probes[0], share):  # probed without a draft
            continue
        values = [getattr(row, share)[kappa] for row in probes]
        axes.plot(layers, values, marker="o", markersize=3.5, color=colour, label=label, linewidth=1.8)
    axes.set(xlabel="layers before the exit", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(15, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best", fontsize=9)
    return _saved(figure, path)


#: Colours of policies, distinguishable with colour blindness (Okabe and Ito), light so that lines are visible.
WINNERS = {
    "plain": "#d9d9d9",
    "speculative": "#b39ddb",
    "pearl": "#f5ee9a",
    "saguaro": "#8fc3e8",
    "mirror": "#f2c063",
    "hybrid": "#7fcdb2",
}


def whatif(result: WhatIf, path: str | Path | None = None, pair: Point | None = None) -> Figure:
    """Draw which policy wins, a panel for every Ω′; lines: the best speed-up over plain decoding.

    Args:
        result: the comparison.
        path: of the picture.
        pair: a measured pair, a star in the panel of its Ω′, or of the next one to it.
    """
    count = len(result.foreseen)
    figure = Figure(figsize=(4.3 * count + 0.6, 4.9), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)
    colours = ListedColormap([WINNERS[name] for name in result.names])
    norm = BoundaryNorm([number - 0.5 for number in range(len(result.names) + 1)], colours.N)
    levels = [1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 7]
    column = int(np.argmin(abs(result.costs - 0.12)))
    for number, (axes, share) in enumerate(zip(panels[0], result.foreseen, strict=True)):
        axes.set(xscale="log", title=f"Ω′ = {share:g}", xlabel=f"T_draft({REFERENCE}) / T_target")
        winners, best = result.winners[number], result.best[number]
        axes.pcolormesh(
            result.costs, result.rates, winners, cmap=colours, norm=norm, shading="nearest", rasterized=True
        )
        lines = axes.contour(result.costs, result.rates, best, levels, colors="#222222", linewidths=0.9)
        inside = [level for level in levels if best[0, column] < level < best[-1, column]]
        at = [(result.costs[column], np.interp(level, best[:, column], result.rates)) for level in inside]
        axes.clabel(lines, fmt=lambda level: f"{level:g}×", fontsize=9, manual=at)
        if pair is not None and number == np.argmin(abs(result.foreseen - pair.foreseen)):
            axes.plot(pair.cost, pair.rate, "*", color="#9b2335", markersize=15, markeredgecolor="white")
        axes.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0, 0].set_ylabel("α, chance that a drafted token is accepted")
    shown = [name for number, name in enumerate(result.names) if (result.winners == number).any()]
    handles: list[Artist] = [
        Patch(facecolor=WINNERS[name], edgecolor="#555555", linewidth=0.5, label=name) for name in shown
    ]
    if pair is not None:
        star = {"color": "#9b2335", "marker": "*", "markersize": 12, "linestyle": "none"}
        handles.append(Line2D([], [], label="this pair, measured", **star))  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    figure.suptitle(
        f"The simplest policy within {100 * result.margin:g} % of the fastest, by the cost model; lines: the fastest "
        "over plain decoding (every policy at its best window)",
        fontsize=11,
    )
    return _saved(figure, path)
