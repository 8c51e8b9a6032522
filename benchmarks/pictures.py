"""Style that the pictures of the benchmarks share."""

from matplotlib.axes import Axes


def plain(axes: Axes) -> None:
    """Light horizontal grid lines, no frame above and at the right."""
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
