"""Pictures; matplotlib is imported here and nowhere else in the package."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]], path: str | Path) -> None:
    """Draw curves against rounds, one panel beside the other, into a picture file.

    Args:
      panels: label of the vertical axis -> name of the curve -> (rounds, values).
      path: file to write, its ending says the format.
    """
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (rounds, values) in lines.items():
            axes.plot(rounds, values, marker="o" if len(rounds) <= 40 else None, markersize=3, label=name)
        axes.set(xlabel="round", ylabel=label)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
