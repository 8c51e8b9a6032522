"""``jaxspec whatif``: which policy is the fastest where, by the cost model? Nothing is measured."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxspec.cli.checks import check_picture
from jaxspec.cli.shared import Flag, report


def whatif(
    foreseen: tuple[float, ...] = (0.5, 0.8, 0.95),
    exit_share: float = 0.5,
    draft_share: float = 0.6,
    branches: int = 8,
    branch_cost: float = 0.02,
    rendezvous: float = 0.0,
    margin: float = 0.02,
    points: int = 160,
    plot: Path = Path("out/whatif.png"),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Draw which policy is the fastest, over the draft's cost, its acceptance rate and the exit's hit rate.

    Args:
        foreseen: how often the exit's candidates contain the outcome of a step (Ω′), one panel each.
        exit_share: the prefix's share of the target's pass (ℓₑ/N).
        draft_share: share of those outcomes that the draft's own candidates contain too.
        branches: rolled out by each side (R).
        branch_cost: what each further branch adds to a pass of the draft.
        rendezvous: a message between the meshes, over the target's pass.
        margin: share of the best speed-up within which the simplest policy wins.
        points: along either axis.
        plot: picture.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import plots
    from jaxspec.analysis.whatif import Assumptions, compare

    check_picture(plot)
    result = compare(foreseen, points, Assumptions(exit_share, draft_share, branches, branch_cost, rendezvous), margin)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plots.whatif(result, plot)
    panels = [
        {"foreseen": share, "wins": result.shares(number), "best": float(result.best[number].max())}
        for number, share in enumerate(foreseen)
    ]
    if json:
        return report({"panels": panels, "plot": str(plot)}, True)
    table = Table(title="share of the points that each wins, in %")
    for column in ("Ω′", *result.names, "best, × plain"):
        table.add_column(column, justify="right")
    for number, share in enumerate(foreseen):
        wins = [f"{100 * part:.1f}" for part in result.shares(number).values()]
        table.add_row(f"{share:g}", *wins, f"{result.best[number].max():.2f}")
    Console().print(table)
    print(f"picture in {plot}")
