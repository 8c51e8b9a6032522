"""The command line: ``python -m jaxfed run|compare|partition``."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import rich
import tyro

from jaxfed.checkpoint import CheckpointError
from jaxfed.cli import compare, partition, run

COMMANDS: dict[str, Callable[..., None]] = {"run": run, "compare": compare, "partition": partition}


def main(args: Sequence[str] | None = None) -> None:
    """Run the installed command ``jaxfed``; exits with 1 after bad input, with 130 after Ctrl-C."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        rich.reconfigure(width=160)  # in a pipe, rich cuts tables to 80 columns
    try:
        with plainly():
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="jaxfed", args=args)
    except (ValueError, FloatingPointError, ImportError, OSError, CheckpointError) as error:
        sys.exit(f"jaxfed: {error}")
    except KeyboardInterrupt as stopped:
        reason = str(stopped) or "stopped before the first round"
        print(f"jaxfed: {reason} (run the same command again)", file=sys.stderr)
        sys.exit(130)


@contextmanager
def plainly() -> Iterator[None]:
    """Print warnings as the errors are, without a line of code."""
    before, warnings.formatwarning = warnings.formatwarning, lambda message, *rest, **more: f"jaxfed: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    main()
