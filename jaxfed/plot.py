"""Pictures; the only module of the package that imports matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

MOST_CLIENTS, MOST_COLOURS, MOST_TICKS = 400, 20, 40

GREY, BLUE, SKY, GREEN, ORANGE, PURPLE = "#666666", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#b5649b"
VERMILION, BLACK = "#d55e00", "#000000"
SOLID, DASHED, DOTTED = "-", (0, (4, 1.6)), (0, (1.2, 1.4))
STYLES: Mapping[str, tuple[str, Any]] = {
    "fedavg": (GREY, SOLID),
    "fedsam": (GREY, DASHED),
    "fedprox": (BLACK, DOTTED),
    "fedadam": (SKY, SOLID),
    "scaffold": (BLUE, SOLID),
    "fedgamma": (BLUE, DASHED),
    "fedcm": (GREEN, SOLID),
    "mofedsam": (GREEN, DASHED),
    "feddyn": (ORANGE, SOLID),
    "fedsmoo": (ORANGE, DASHED),
    "fedspeed": (VERMILION, SOLID),
    "fedinit": (PURPLE, SOLID),
    "fedlesam": (PURPLE, DASHED),
    "fednova": (SKY, DASHED),
    "qfedavg": (GREY, DOTTED),
}
"""One colour (Okabe and Ito's, distinct for colour-blind readers) for what corrects the drift; dashed: perturbed."""


class Line(NamedTuple):
    """One algorithm in a comparison.

    Attributes:
        along: label of a horizontal axis -> positions of the measurements [n]; without one, it is not in that panel.
        values: the measurements with every seed, [seeds, n].
    """

    along: Mapping[str, Sequence[float]]
    values: np.ndarray


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]], path: str | Path | None = None
) -> Figure:
    """Draw curves against rounds, one panel beside the other; return the figure, which a notebook shows.

    Args:
        panels: label of the vertical axis -> name of the curve -> (rounds, values).
        path: picture file to write as well; its suffix is the format.
    """
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (rounds, values) in lines.items():
            axes.plot(rounds, values, marker="o" if len(rounds) <= 40 else None, markersize=3, label=name)
        axes.set(xlabel="round", ylabel=label)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path, 130)


def bands(lines: Mapping[str, tuple[Sequence[int], np.ndarray]], label: str, path: str | Path | None = None) -> Figure:
    """Draw the runs of a sweep against rounds, `jaxfed.Sweep.curves(name)`; return the figure.

    A line is the mean over the seeds, the band about it one standard deviation; the legend has the last mean.

    Args:
        lines: label of a point -> (rounds [n], numbers [seeds, n]).
        label: of the vertical axis.
        path: picture file to write as well; its suffix is the format.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(lines)))
    for colour, (name, (rounds, values)) in zip(colours, lines.items(), strict=True):
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
        axes.plot(rounds, mean, color=colour, label=f"{name}: {mean[-1]:.3g}")
        axes.fill_between(rounds, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel="round", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return _saved(figure, path, 130)


def _saved(figure: Figure, path: str | Path | None, dpi: int) -> Figure:
    """Return the figure, written to a picture file if there is a path."""
    if path is not None:
        figure.savefig(path, dpi=dpi)
    return figure


def comparison(
    lines: Mapping[str, Line], label: str, path: str | Path | None = None, target: float | None = None
) -> Figure:
    """Draw algorithms against each other, one panel for every horizontal axis; return the figure.

    A line is the mean over the seeds, the band about it one standard deviation; the legend is in the order in which
    the lines end, with their last values.

    Args:
        lines: name of the algorithm -> its line.
        label: of the vertical axis, which is a fraction.
        path: picture file to write as well; its suffix is the format.
        target: a value to mark.
    """
    axes_of = list(dict.fromkeys(axis for line in lines.values() for axis in line.along))
    ranked = sorted(lines, key=lambda name: -np.nan_to_num(np.mean(lines[name].values[:, -1]), nan=-1.0))
    figure = Figure(figsize=(3.4 * len(axes_of) + 1.6, 3.4), layout=ConstrainedLayoutEngine(wspace=0.04))
    panels = figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
    for axes, axis in zip(panels, axes_of, strict=True):
        for rank, name in enumerate(ranked):
            if axis in lines[name].along:
                _band(axes, name, lines[name], axis, len(ranked) - rank)
        if target is not None:
            axes.axhline(target, color="0.6", linewidth=0.8, linestyle=DOTTED, zorder=0)
        scaled, unit = _unit(axis, axes.get_xlim()[1])
        axes.set(xlabel=f"{axis}{unit}", xlim=(0, None))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _, scale=scaled: f"{tick / scale:g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", color="0.92", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(label)
    panels[0].set_ylim(_floor([line.values for line in lines.values()]), None)
    if target is not None:
        edge = panels[-1].get_yaxis_transform()
        panels[-1].text(0.995, target, "target", ha="right", va="top", color="0.45", fontsize=8, transform=edge)
    named = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    labels = [f"{name}  {100 * np.mean(lines[name].values[:, -1]):.1f} %" for name in ranked]
    figure.legend([named[name] for name in ranked], labels, loc="outside right center", frameon=False, handlelength=2.6)
    return _saved(figure, path, 200)


def _band(axes: Axes, name: str, line: Line, axis: str, order: int) -> None:
    """Draw one line of `comparison`; a name without a style of its own takes the colours in turn, dash-dotted."""
    turn = list(dict.fromkeys(colour for colour, _ in STYLES.values()))
    colour, dash = STYLES.get(name, (turn[sum(map(ord, name)) % len(turn)], "-."))
    mean, spread, at = np.mean(line.values, axis=0), np.std(line.values, axis=0), line.along[axis]
    width = 2.4 if name == "fedspeed" else 1.4
    axes.plot(at, mean, color=colour, linestyle=dash, linewidth=width, label=name, zorder=2 + order / 100)
    if len(line.values) > 1:
        axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0, zorder=1)


def _floor(values: Sequence[np.ndarray]) -> float | None:
    """Return where the vertical axis of long lines begins: above their steep start, which would flatten the rest."""
    if min(each.shape[1] for each in values) < 15:
        return None
    start, most = np.nanquantile(np.concatenate([np.ravel(each) for each in values]), [0.1, 1.0])
    floor = min(start, *(np.nanmin(each[:, -1]) for each in values))
    return float(floor - 0.05 * (most - floor))


def _unit(axis: str, most: float) -> tuple[float, str]:
    """Return the divisor of an axis's numbers and its suffix in the label; seconds and rounds are not scaled."""
    for scale, unit in ((1e6, " (millions)"), (1e3, " (thousands)")):
        if axis == "samples" and most >= 2 * scale:
            return scale, unit
    return 1.0, ""


def label_distribution(
    counts: np.ndarray, path: str | Path | None = None, classes: Sequence[str] | None = None
) -> Figure:
    """Draw how many samples every client has, and of which classes; return the figure.

    Up to 20 classes are stacked bars, more are a heat map, commonest class on top. At most 400 clients are shown.

    Args:
        counts: samples of every class that every client has, at least one per client, [N, C].
        path: picture file to write as well; its suffix is the format.
        classes: names of the classes [C]; by default their numbers.
    """
    names = [str(name) for name in (range(counts.shape[1]) if classes is None else classes)]
    shown = np.linspace(0, len(counts) - 1, min(len(counts), MOST_CLIENTS)).astype(int)
    figure = Figure(figsize=(min(12.0, 6.0 + 0.06 * len(shown)), 5.2), layout="constrained")
    sizes, shares = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    at, samples = np.arange(len(shown)), counts[shown].sum(axis=1)
    _columns(sizes, np.zeros(len(shown)), samples, color="0.55")
    sizes.set(ylabel="samples", ylim=(0, None))
    fractions = counts[shown] / samples[:, None]
    (_bars if len(names) <= MOST_COLOURS else _heat_map)(figure, shares, fractions, names)
    ticks = [tick for tick in MaxNLocator(10, integer=True).tick_values(0, len(counts) - 1) if 0 <= tick < len(counts)]
    shares.set_xticks(np.interp(ticks, shown, at), [f"{tick:,.0f}" for tick in ticks])
    some = "" if len(shown) == len(counts) else f" ({len(shown)} of {len(counts):,})"
    shares.set(xlabel=f"client{some}", xlim=(-0.5, len(shown) - 0.5))
    for axes in (sizes, shares):
        axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path, 130)


def _columns(axes: Axes, bottom: np.ndarray, top: np.ndarray, **style: Any) -> None:
    """Draw one column per client; many as one outline without gaps, which is a hundred times faster."""
    if len(top) <= 120:
        axes.bar(np.arange(len(top)), top - bottom, 0.85, bottom, **style)
    else:
        axes.stairs(top, np.arange(len(top) + 1) - 0.5, baseline=bottom, fill=True, **style)


def _bars(figure: Figure, axes: Axes, fractions: np.ndarray, names: Sequence[str]) -> None:
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    tops = np.cumsum(fractions, axis=1)
    for number, name in enumerate(names):
        _columns(axes, tops[:, number] - fractions[:, number], tops[:, number], color=colours[number], label=name)
    axes.set(ylabel="share of the client's samples", ylim=(0, 1))
    bars, labels = axes.get_legend_handles_labels()
    figure.legend(bars[::-1], labels[::-1], loc="outside right center", title="class", frameon=False)


def _heat_map(figure: Figure, axes: Axes, fractions: np.ndarray, names: Sequence[str]) -> None:
    order = np.argsort(-fractions.mean(axis=0), kind="stable")
    image = axes.imshow(
        fractions.T[order], aspect="auto", norm=PowerNorm(0.5, 0), interpolation="nearest", cmap="magma_r"
    )
    ticks = np.arange(0, len(names), -(-len(names) // MOST_TICKS))
    axes.set_yticks(ticks, [names[order[tick]] for tick in ticks], fontsize=6)
    axes.set(ylabel="class, commonest first")
    figure.colorbar(image, ax=axes, label="share of the client's samples", format=PercentFormatter(1, decimals=0))
