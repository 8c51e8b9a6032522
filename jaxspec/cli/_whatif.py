"""``jaxspec whatif``: which policy is the fastest where, by the cost model? With a pair: where does it lie?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich
import tyro
from rich.table import Table

from jaxspec.cli._methods import Continuations, load, two_devices
from jaxspec.cli.checks import at_least, check_picture
from jaxspec.cli.shared import Flag, report

if TYPE_CHECKING:
    from jaxspec.analysis import MeasuredPoint
    from jaxspec.analysis.whatif import Assumptions, WhatIf


@dataclass(frozen=True)
class AssumptionFlags:
    """Constants of the comparison.

    Attributes:
        exit_share: the prefix's share of the target's pass (ℓₑ/N). Default: a pair's own, else 0.5.
        draft_share: share of those outcomes that the draft's own candidates contain too.
        branches: rolled out by each side (R).
        branch_cost: what each further branch adds to a pass of the draft.
        rendezvous: a message between the meshes, over the target's pass.
    """

    exit_share: float | None = None
    draft_share: float = 0.6
    branches: int = 8
    branch_cost: float = 0.02
    rendezvous: float = 0.0

    def assumptions(self, pair: "MeasuredPoint | None") -> "Assumptions":
        """Return the constants.

        Raises:
            ValueError: one outside its range.
        """
        from jaxspec.analysis.whatif import Assumptions

        own = 0.5 if pair is None else pair.exit_share
        share = own if self.exit_share is None else self.exit_share
        return Assumptions(share, self.draft_share, self.branches, self.branch_cost, self.rendezvous)


@dataclass(frozen=True)
class PairFlags:
    """A pair that is measured and drawn.

    Attributes:
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint. Default: none;
            nothing is measured.
        draft: as for generate; an embedded pair has its own.
        num_candidates: tokens that the exit sends for each position (κ).
        exit_layer: layers before the exit; default: the pair's own, else half of the target's.
    """

    target: str | None = None
    draft: Path | None = None
    num_candidates: int = 8
    exit_layer: int | None = None

    def check(self, continuations: Continuations) -> None:
        """Check the flags before models are loaded.

        Raises:
            ValueError: a draft without a target, a number below its minimum, a path that cannot be read.
        """
        from jaxspec.analysis.whatif import REFERENCE

        at_least(1, num_candidates=self.num_candidates, exit_layer=self.exit_layer)
        if self.target is None and (self.draft is not None or continuations.prompts):
            raise ValueError("expected --target with --draft or --prompts, got none; name the pair to measure")
        if self.target is not None:
            continuations.check(REFERENCE)


def whatif(
    foreseen: tuple[float, ...] = (0.5, 0.8, 0.95),
    constants: Annotated[AssumptionFlags, tyro.conf.arg(name="")] = AssumptionFlags(),
    pair: Annotated[PairFlags, tyro.conf.arg(name="")] = PairFlags(),
    continuations: Annotated[Continuations, tyro.conf.arg(name="")] = Continuations(),
    margin: float = 0.02,
    points: int = 160,
    plot: Path = Path("out/whatif.png"),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Draw which policy is the fastest, over the draft's cost, its acceptance rate and the exit's hit rate.

    With --target and a draft the pair is measured on this machine: its cost is timed, its acceptance and hit rate are
    replayed along the target's own answers. It gets a panel of its own, with a star, and a line.

    Args:
        foreseen: how often the exit's candidates contain the outcome of a step (Ω′), one panel each.
        constants: of the comparison.
        pair: that is drawn.
        continuations: prompts for it and their continuations.
        margin: share of the best speed-up within which the simplest policy wins.
        points: along either axis.
        plot: picture.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import plots
    from jaxspec.analysis.whatif import compare

    check_picture(plot)
    pair.check(continuations)
    constants.assumptions(None)
    own = None if pair.target is None else _measured(pair, continuations, not json)
    at = own and own.at._replace(foreseen=round(own.at.foreseen, 3))
    shares = foreseen if at is None else (*foreseen, at.foreseen)
    result = compare(shares, points, constants.assumptions(own), margin, at)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plots.whatif(result, plot, at)
    about = own and _about(own, constants.assumptions(own), margin)
    if json:
        panels = [
            {"foreseen": share, "wins": result.shares(number), "best": float(result.best[number].max())}
            for number, share in enumerate(shares)
        ]
        return report({"panels": panels, "pair": about, "plot": str(plot)}, True)
    rich.print(_table(result))
    if about:
        print(_sentence(about))
    print(f"picture in {plot}")


def _measured(pair: PairFlags, continuations: Continuations, progress: bool) -> "MeasuredPoint":
    from jaxspec.analysis import measured_point

    two_devices()
    assert pair.target is not None
    models = load(pair.target, pair.draft, drafting_for="jaxspec whatif --target")
    assert models.draft is not None
    return measured_point(
        models.target,
        models.draft,
        continuations.read(models.target.text),
        num_candidates=pair.num_candidates,
        exit_layer=pair.exit_layer or models.exit_layer,
        exit=models.exit,
        new_tokens=continuations.new_tokens,
        progress=progress,
    )


def _about(own: "MeasuredPoint", assumptions: "Assumptions", margin: float) -> dict[str, Any]:
    """Return the pair's figures and the policy that the cost model prefers there."""
    from jaxspec.analysis.whatif import best_at

    wins, gain = best_at(assumptions, own.at, margin)
    figures = {**own.at._asdict(), "exit_share": own.exit_share, "window": own.window}
    return {**figures, "pass_over_plain": own.pass_over_plain, "wins": wins, "gain": gain}


def _sentence(about: dict[str, Any]) -> str:
    return (
        f"this pair, at window {about['window']}: T_draft(7) / T_target {about['cost']:.2f}, α {about['rate']:.2f}, Ω′ "
        f"{about['foreseen']:.2f}; the cost model prefers {about['wins']}, {about['gain']:.2f}× plain decoding if a "
        "pass of the target took no longer than a step of plain decoding. Here it takes "
        f"{about['pass_over_plain']:.2f} times as long, which jaxspec tune counts."
    )


def _table(result: "WhatIf") -> Table:
    table = Table(title="share of the points that each wins, in %")
    for column in ("Ω′", *result.names, "best, × plain"):
        table.add_column(column, justify="right")
    for number, share in enumerate(result.foreseen):
        wins = [f"{100 * part:.1f}" for part in result.shares(number).values()]
        table.add_row(f"{share:g}", *wins, f"{result.best[number].max():.2f}")
    return table
