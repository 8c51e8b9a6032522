"""``jaxspec train``: the training of the embedded pair, and of drafts for any target."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxspec.cli._train_draft import DraftTraining, train_draft
from jaxspec.cli._train_lens import LensTraining, train_lens
from jaxspec.cli._train_target import TargetTraining, train_target
from jaxspec.cli.answers import Answers
from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report
from jaxspec.zoo.heads import HeadsRecipe
from jaxspec.zoo.recipe import PairRecipe

What = Literal["shakespeare", "streams", "drafts", "draft", "lens", "target"]
#: What is trained for any target, on its own answers.
FOR_ANY_TARGET = ("draft", "lens", "target")


def train(
    what: Annotated[What, tyro.conf.Positional] = "shakespeare",
    out: Path | None = None,
    recipe: PairRecipe = PairRecipe(),
    heads: HeadsRecipe = HeadsRecipe(),  # noqa: B008  a frozen default
    answers: Annotated[Answers, tyro.conf.arg(name="")] = Answers(),
    draft: Annotated[DraftTraining, tyro.conf.arg(name="")] = DraftTraining(),  # noqa: B008  a frozen default
    lens: Annotated[LensTraining, tyro.conf.arg(name="")] = LensTraining(),
    target: Annotated[TargetTraining, tyro.conf.arg(name="")] = TargetTraining(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Train a pair on the roles in the package, or a draft or exits for any target; interrupted runs resume from OUT.

    Args:
        what: shakespeare: the whole pair; streams: only lookahead streams for the draft of the embedded pair; drafts:
            only its drafts that read hidden states; draft: a draft for any target, on texts that it continues itself;
            lens: exits for it, likewise; target: the target itself, further, so that its own head reads early layers.
        out: folder for checkpoints; the result is OUT/pair, OUT/draft, OUT/lens.safetensors or OUT/target. Default:
            out/pair, out/draft, out/lens or out/target.
        recipe: models and schedules of a pair.
        heads: of the embedded pair's drafts that read hidden states.
        answers: what the target answers, for a draft or exits.
        draft: settings of a draft.
        lens: settings of exits.
        target: settings of a target's further training.
        json: print one JSON object as the last line.
    """
    folder = out or Path("out", what if what in FOR_ANY_TARGET else "pair")
    check_writable(folder)
    if what == "target":
        return report(train_target(answers, draft, target, folder), json)
    if what == "lens":
        return report(train_lens(answers, draft, lens, folder), json)
    if what == "draft":
        return report(train_draft(answers, draft, folder), json)
    from jaxspec.zoo import load
    from jaxspec.zoo import recipe as recipes
    from jaxspec.zoo.heads import run

    if what == "drafts":
        return report(run(heads, load(), folder), json)
    figures = recipes.main(recipe, folder) if what == "shakespeare" else recipes.add_streams(recipe, load(), folder)
    report(figures, json)
