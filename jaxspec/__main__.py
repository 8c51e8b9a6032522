"""The command line: ``jaxspec demo | generate | … | train | federate``."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxfed.checkpoint import CheckpointError
from jaxspec.cli import bench, convert, doctor, federate, generate, probe, tune, whatif
from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report
from jaxspec.zoo.recipe import Recipe


def demo(out: Path = Path("out/demo"), json: Flag = False) -> None:  # noqa: A002  the flag is called --json
    """Decode with three methods, federate the draft, draw what happened; about four minutes on two cores.

    Args:
        out: folder for pictures and the federated draft.
        json: end with one JSON object on one line.
    """
    from jaxspec.cli import demo as story

    check_writable(out)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    story.main(out, json)


def train(
    what: Annotated[Literal["shakespeare", "streams"], tyro.conf.Positional] = "shakespeare",
    out: Path = Path("out/pair"),
    recipe: Recipe = Recipe(),  # noqa: B008  a frozen default
    json: Flag = False,  # noqa: A002
) -> None:
    """Train an embedded pair from the roles in the package; resumes from ``out`` after an interruption.

    Args:
        what: the whole pair, or only lookahead streams for the draft of the embedded one.
        out: folder for checkpoints; the finished pair is written to ``out/pair``.
        recipe: everything that the pair depends on.
        json: end with one JSON object on one line.
    """
    from jaxspec.zoo import load
    from jaxspec.zoo import recipe as recipes

    check_writable(out)
    figures = recipes.main(recipe, out) if what == "shakespeare" else recipes.add_streams(recipe, load(), out)
    report(figures, json)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "generate": generate,
    "doctor": doctor,
    "probe": probe,
    "tune": tune,
    "whatif": whatif,
    "bench": bench,
    "convert": convert,
    "train": train,
    "federate": federate,
}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the installed command ``jaxspec``; exits with 1 after bad input."""
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="jaxspec", args=args)
    except (ValueError, FloatingPointError, OSError, MemoryError, ModuleNotFoundError, CheckpointError) as error:
        sys.exit(f"jaxspec: {error}")


if __name__ == "__main__":
    main()
