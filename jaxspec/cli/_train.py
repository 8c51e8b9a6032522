"""``jaxspec train``: the training of the embedded pair."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report
from jaxspec.zoo.recipe import PairRecipe


def train(
    what: Annotated[Literal["shakespeare", "streams"], tyro.conf.Positional] = "shakespeare",
    out: Path = Path("out/pair"),
    recipe: PairRecipe = PairRecipe(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Train a pair on the Shakespeare roles in the package; an interrupted run resumes from OUT.

    Args:
        what: shakespeare: the whole pair; streams: only lookahead streams for the draft of the embedded pair.
        out: folder for checkpoints; the finished pair is written to OUT/pair.
        recipe: models and schedules.
        json: print one JSON object as the last line.
    """
    from jaxspec.zoo import load
    from jaxspec.zoo import recipe as recipes

    check_writable(out)
    figures = recipes.main(recipe, out) if what == "shakespeare" else recipes.add_streams(recipe, load(), out)
    report(figures, json)
