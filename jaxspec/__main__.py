"""The command line: ``jaxspec demo | generate | … | train | federate``."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import rich
import tyro

from jaxfed.checkpoint import CheckpointError
from jaxspec.cli import bench, convert, doctor, federate, fetch, fits, generate, predict, probe, train, tune, whatif
from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, keep_programs


def demo(out: Path = Path("out/demo"), json: Flag = False) -> None:  # noqa: A002  the flag is called --json
    """Decode with three methods, federate the draft, and draw the results; about four minutes on two cores.

    Args:
        out: folder for pictures and the federated draft.
        json: print one JSON object as the last line.
    """
    from jaxspec.cli import demo as story

    check_writable(out)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    story.main(out, json)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "generate": generate,
    "doctor": doctor,
    "probe": probe,
    "tune": tune,
    "whatif": whatif,
    "predict": predict,
    "bench": bench,
    "convert": convert,
    "fetch": fetch,
    "fits": fits,
    "train": train,
    "federate": federate,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the installed command ``jaxspec``; exit with status 1 on bad input.

    Args:
        args: arguments; default: those of this process, which then keeps compiled programs for the next one.
    """
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        rich.reconfigure(width=160)  # in a pipe, rich cuts tables to 80 columns
    if args is None:
        keep_programs()
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="jaxspec", args=args)
    except (ValueError, FloatingPointError, OSError, MemoryError, ModuleNotFoundError, CheckpointError) as error:
        sys.exit(f"jaxspec: {error}")


if __name__ == "__main__":
    main()
