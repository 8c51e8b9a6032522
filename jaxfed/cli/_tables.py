"""Tables of the commands."""

import os

from rich.console import Console
from rich.table import Table

WIDE = 160
"""Columns of a table that goes to a file or another program, which has no width of its own."""


def show(table: Table) -> None:
    """Print a table, as wide as the terminal; `COLUMNS` says otherwise."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDE)
    console.print(table)
