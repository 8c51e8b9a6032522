"""The command line: ``python -m jaxspec demo | train | generate``."""

import json
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxspec.zoo.recipe import Recipe

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def demo(out: Path = Path("out/demo"), json: Flag = False) -> None:  # noqa: A002  the flag is called --json
    """Decode with three methods, federate the draft, draw what happened; about three minutes on two cores.

    Args:
        out: folder for pictures and the federated draft.
        json: end with one JSON object on one line.
    """
    from jaxspec import demo as story

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    story.main(out, json)


def train(
    pair: Annotated[Literal["shakespeare"], tyro.conf.Positional] = "shakespeare",
    out: Path = Path("out/pair"),
    recipe: Recipe = Recipe(),  # noqa: B008  a frozen default
    json: Flag = False,  # noqa: A002
) -> None:
    """Train an embedded pair from the roles in the package; resumes from ``out`` after an interruption.

    Args:
        pair: which recipe.
        out: folder for checkpoints; the finished pair is written to ``out/pair``.
        recipe: everything that the pair depends on.
        json: end with one JSON object on one line.
    """
    from jaxspec.zoo import recipe as recipes

    del pair
    figures = recipes.main(recipe, out)
    _print(figures, json)


def generate(
    prompt: str,
    method: Literal["autoregressive", "speculative", "mirror"] = "mirror",
    max_new_tokens: int = 128,
    pair: str = "shakespeare",
    json: Flag = False,  # noqa: A002
) -> None:
    """Continue a prompt with an embedded pair.

    Args:
        prompt: raw text to continue.
        method: how to decode; the text is the same.
        max_new_tokens: tokens to add.
        pair: name of an embedded pair, or a folder that ``train`` wrote.
        json: end with one JSON object on one line.
    """
    import jaxspec
    from jaxspec.bench import BUILDERS, Setting, batch_scheduling

    batch_scheduling()
    jax.config.update("jax_num_cpu_devices", 2)
    loaded = jaxspec.zoo.load(pair)
    setting = Setting(method, window=7, budget=4, num_candidates=4)
    result = jaxspec.generate(
        BUILDERS[method](setting, loaded), [prompt], max_new_tokens, tokenizer=loaded.tokenizer, progress=not json
    )
    stats = {"steps": result.stats.steps, "accepted_length": result.stats.accepted_length}
    if not json:
        print(prompt + (result.text or [""])[0])
    _print({"tokens": result.tokens[0], "text": (result.text or [""])[0], "stats": stats} if json else stats, json)


def _print(found: dict, as_json: bool) -> None:
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def main() -> None:
    """Entry point of the installed command ``jaxspec``."""
    tyro.extras.subcommand_cli_from_dict({"demo": demo, "train": train, "generate": generate}, prog="jaxspec")


if __name__ == "__main__":
    main()
