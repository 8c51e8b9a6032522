"""The table and the picture of a reproduction."""

from pathlib import Path
from typing import Any

import numpy as np
import pictures
import reproduction
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduction import EPOCHS, Row
from rich.table import Table

COLOURS = {"fedavg": "#0072b2", "fedspeed": "#d55e00"}
SHOWN = ("best", "last", "rounds to target", "seconds")


def table(lines: list[Row]) -> Table:
    """Return a table of the lines, one section per partition."""
    first = lines[0]
    title = (
        f"{first['suite']}, {first['images']:,} images, {first['cohort']} of {first['clients']} clients, "
        f"{first['partitioner']} partitions, seeds: {max(line['seeds'] for line in lines)}"
    )
    shown = Table("partition", "epochs", "rounds", "algorithm", *SHOWN, title=title, title_justify="left")
    before = None
    for row in lines:
        group = row["partition"], row["epochs"], row["rounds"]
        if before not in (None, group):
            shown.add_section()
        to = "never" if row["rounds_to_target"] is None else f"{row['rounds_to_target']}"
        target = "–" if row["target"] is None else f"{to} ({row['target']:.2f})"
        spread = {name: f" ± {row[f'{name}_std']:.2f}" if row["seeds"] > 1 else "" for name in ("best", "last")}
        accuracies = [f"{row[name]:.2f}{spread[name]}" for name in ("best", "last")]
        partition = "iid" if row["partition"] == "iid" else f"Dirichlet {row['partition']}"
        heads = [partition, str(row["epochs"]), str(row["rounds"])] if group != before else [""] * 3
        shown.add_row(*heads, row["algorithm"], *accuracies, target, f"{row['seconds']:.1f}")
        before = group
    return shown


def draw(rows: dict[Any, Row], path: Path, title: str) -> None:
    """Draw accuracy over rounds for every partition, then over local epochs at equal samples and rounds."""
    partitions = list(dict.fromkeys(cell.partition for cell in rows))
    equal = [name for name in dict.fromkeys(cell.equal for cell in rows) if name != "all"]
    width = len(partitions) + len(equal)
    figure = Figure(figsize=(2.9 * width + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, width, squeeze=False)[0]
    for axes, partition in zip(panels, partitions, strict=False):
        here = {c.algorithm: r for c, r in rows.items() if c.partition == partition and c.epochs == EPOCHS}
        for name, row in here.items():
            _curve(axes, name, row["evaluated"], 100 * np.asarray(row["curves"]))
        means = 100 * np.stack([reproduction.mean_curve(row) for row in here.values()])
        floor = min(np.quantile(means, 0.1), means[:, -1].min())  # hides the steep start, shows the end of every curve
        air = 0.05 * (means.max() - floor) + 0.2
        axes.set_ylim(floor - air, means.max() + air)
        axes.set(title="IID" if partition == "iid" else f"Dirichlet {partition}", xlabel="round", xlim=(0, None))
    for axes, name in zip(panels[len(partitions) :], equal, strict=True):
        _ladder(axes, {c: r for c, r in rows.items() if c.equal in ("all", name) and c.partition == partitions[-1]})
        axes.set(title=f"Dirichlet {partitions[-1]}, equal {name}", xlabel="local epochs per round", ylabel="best, %")
    for axes in panels:
        pictures.plain(axes)
    panels[0].set_ylabel("test accuracy, %")
    named = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _curve(axes: Axes, name: str, along: list[int], values: np.ndarray) -> None:
    """Draw the mean over seeds; a band of one deviation for FedSpeed and FedAvg, the others in grey."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    if name not in COLOURS:
        axes.plot(along, mean, color="0.75", linewidth=0.9, zorder=1, label="the others")
        return
    axes.plot(along, mean, color=COLOURS[name], linewidth=2.2, zorder=3, label=name)
    if len(values) > 1:
        axes.fill_between(along, mean - spread, mean + spread, color=COLOURS[name], alpha=0.18, linewidth=0, zorder=2)


def _ladder(axes: Axes, rows: dict[Any, Row]) -> None:
    """Draw best accuracies over local epochs."""
    ladder = sorted({cell.epochs for cell in rows})
    for name, colour in COLOURS.items():
        here = sorted((cell.epochs, row["curves"]) for cell, row in rows.items() if cell.algorithm == name)
        if here:
            best = [100 * np.max(curves, axis=1) for _, curves in here]
            mean, spread = [each.mean() for each in best], [each.std() for each in best]
            axes.errorbar([k for k, _ in here], mean, spread, color=colour, marker="o", markersize=4, capsize=2)
    axes.set_xscale("log")
    axes.set_xticks(ladder, [str(k) for k in ladder])
    axes.minorticks_off()
