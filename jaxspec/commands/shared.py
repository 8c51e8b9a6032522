"""What the commands share: flags, how results are printed."""

import json
from typing import Annotated, Any

import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def report(found: dict[str, Any], as_json: bool) -> None:
    """One JSON object on one line, or a line for each entry."""
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))
