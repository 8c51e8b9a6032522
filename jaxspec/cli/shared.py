"""What the commands share: flags, how results are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxspec.text import Text, token_rows, tokens_of

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def report(found: dict[str, Any], as_json: bool) -> None:
    """One JSON object on one line, or a line for each entry."""
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))


#: Tokens of a prompt taken from a text.
PROMPT = 32


def reader(text: Text | None) -> Text:
    """How a model reads.

    Raises:
        ValueError: it came without a tokenizer.
    """
    if text is None or text.encode is None:
        raise ValueError("expected a target with a tokenizer, got none; keep tokenizer.json beside the weights")
    return text


def prompts_of(text: Text | None, count: int, path: Path | None = None) -> list[list[int]]:
    """At most ``count`` prompts of ``PROMPT`` tokens, as a model reads them.

    Args:
        text: of the model.
        count: of prompts.
        path: texts, as ``federated.read_texts`` reads them, whose windows they are; None: the beginnings of roles that
            the embedded pair never saw.

    Raises:
        ValueError: a model without a tokenizer, or no text as long as a prompt.
    """
    from jaxspec.federated import read_texts
    from jaxspec.zoo.recipe import held_out_roles

    text = reader(text)
    if path is None:
        return [tokens_of(text, role.text)[:PROMPT].tolist() for role in held_out_roles()[:count]]
    texts = [part for part in read_texts(path).values() if len(tokens_of(text, part)) >= PROMPT]
    if not texts:
        raise ValueError(f"{path}: expected a text of at least {PROMPT} tokens, got none; use longer texts")
    rows, _ = token_rows(text, texts[:count], PROMPT, -(-count // min(len(texts), count)))
    return rows[:count].tolist()
