"""The command line: one module per command."""

from jaxfed.cli._compare import compare
from jaxfed.cli._partition import partition
from jaxfed.cli._run import run

__all__ = [
    "compare",
    "partition",
    "run",
]
