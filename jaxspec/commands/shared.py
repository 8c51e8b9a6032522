"""What the commands share: flags, how results are printed."""

import json
from typing import Annotated, Any

import tyro

from jaxspec.text import Text

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def report(found: dict[str, Any], as_json: bool) -> None:
    """One JSON object on one line, or a line for each entry."""
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))


#: Tokens of a held-out role that a continuation begins with.
PROMPT = 32


def held_out(text: Text | None, count: int) -> list[list[int]]:
    """The first ``PROMPT`` tokens of held-out roles, as a model reads them.

    Raises:
        ValueError: a model without a tokenizer.
    """
    from jaxspec.zoo.recipe import held_out_roles

    if text is None or text.encode is None:
        raise ValueError("expected a target with a tokenizer, got none; keep tokenizer.json beside the weights")
    return [text.encode(role.text)[:PROMPT].tolist() for role in held_out_roles()[:count]]
