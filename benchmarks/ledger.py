"""Finished lines of a benchmark, kept in a JSON Lines file so that they are not measured again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Ledger:
    """Lines of one set of settings; lines of other settings may be in the same file.

    Args:
        path: of the file; folders are made.
        settings: only lines recorded with equal settings are read.
        keep: further condition on a line.
    """

    def __init__(self, path: Path, settings: Row, keep: Callable[[Row], bool] = lambda row: True) -> None:
        self._path, self._settings = path, _as_json(settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [row for line in written if (row := _parsed(line)) and row.pop("settings", None) == self._settings]
        self.rows: list[Row] = [row for row in rows if keep(row)]

    def find(self, **entries: Any) -> Row | None:
        """The last line with these entries, or None."""
        wanted = _as_json(entries)
        return next((row for row in reversed(self.rows) if wanted.items() <= row.items()), None)

    def add(self, row: Row) -> Row:
        """Append a line to the file and return it."""
        self.rows.append(_as_json(row))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "settings": self._settings}) + "\n")
        return row


def _as_json(row: Row) -> Row:
    """With lists for tuples and strings for keys, as the file has them."""
    return json.loads(json.dumps(row))


def _parsed(line: str) -> Row:
    """Empty if the line was cut short by an interruption; it is then measured again."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}
