"""Tables of commands, in a terminal and in a pipe."""

import pytest
from rich.table import Table

from jaxfed.cli import _tables as of_jaxfed
from jaxspec.cli import _tables as of_jaxspec


@pytest.mark.parametrize("tables", [of_jaxfed, of_jaxspec], ids=["jaxfed", "jaxspec"])
def test_a_table_in_a_pipe_is_not_cut(tables, capsys, monkeypatch):
    table = Table(*(f"a long name of column {number}" for number in range(5)))
    table.add_row(*"12345")
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.show(table)
    head = capsys.readouterr().out.splitlines()[1]
    assert all(f"a long name of column {number}" in head for number in range(5))
    monkeypatch.setenv("COLUMNS", "40")
    tables.show(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40
