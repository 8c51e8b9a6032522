"""Picture of the lines of specbench.py: speed over plain decoding by task, a dot for each method."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from ledger import Row
from matplotlib.axes import Axes
from tables import TASKS

#: Methods in colour, ours first; the others are grey.
COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#8c510a", "#5e3c99", "#b2182b",
)  # fmt: skip
MARKERS = {"transformers": "s", "llama.cpp": "^"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture, a panel for each temperature."""
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    figure, panels = plt.subplots(
        1, len(temperatures), figsize=(5.2 * len(temperatures), 4.2), squeeze=False, sharey=True
    )
    names = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "autoregressive"]
    own = [name for name in names if not name.startswith(tuple(MARKERS))]
    colours = dict(zip(own, COLOURS, strict=False))
    for axes, temperature in zip(panels[0], temperatures, strict=True):
        for name in names:
            mine = {row["task"]: row for row in rows if (row["temperature"], row["method"]) == (temperature, name)}
            places = [place for place, task in enumerate(TASKS) if task in mine]
            speeds = [mine[task]["ratio_to_autoregressive"] for task in TASKS if task in mine]
            marker = next((mark for start, mark in MARKERS.items() if name.startswith(start)), "o")
            axes.plot(speeds, places, marker, label=name, color=colours.get(name, "0.55"), alpha=0.9)
        _finish(axes, temperature)
    panels[0][0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.12), ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _finish(axes: Axes, temperature: float) -> None:
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set_yticks(range(len(TASKS)), list(TASKS.values()))
    axes.set_ylim(len(TASKS) - 0.5, -0.5)
    axes.grid(axis="x", color="0.92", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("tokens a second over plain decoding")
    axes.set_title(f"temperature {temperature:g}", fontsize=10)
