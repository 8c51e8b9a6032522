"""Helpers that several commands share: flags, printing, prompts."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxspec.text import Text, token_rows, tokens_of

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def report(results: dict[str, Any], as_json: bool) -> None:
    """Print one JSON object on one line, or one line per entry."""
    print(json.dumps(results) if as_json else "\n".join(f"{name}: {value}" for name, value in results.items()))


def keep_programs() -> None:
    """Keep compiled programs for later calls, in ``~/.cache/jaxspec`` unless jax has a folder already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxspec" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


#: Length in tokens of a prompt taken from a text.
PROMPT = 32


def with_tokenizer(text: Text | None) -> Text:
    """Return a model's text handling, checked to have a tokenizer.

    Raises:
        ValueError: the model was loaded without a tokenizer.
    """
    if text is None or text.encode is None:
        raise ValueError("expected a target with a tokenizer, got none; keep tokenizer.json next to the weights")
    return text


def prompts_of(text: Text | None, count: int, path: Path | None = None) -> list[list[int]]:
    """Return at most ``count`` prompts of ``PROMPT`` tokens.

    Args:
        text: the model's text handling.
        count: number of prompts.
        path: texts for ``federated.read_texts``, cut into windows; None: beginnings of held-out Shakespeare roles.

    Raises:
        ValueError: the model has no tokenizer, or no text is as long as a prompt.
    """
    from jaxspec.federated import read_texts
    from jaxspec.zoo.recipe import held_out_roles

    text = with_tokenizer(text)
    if path is None:
        return [tokens_of(text, role.text)[:PROMPT].tolist() for role in held_out_roles()[:count]]
    texts = [part for part in read_texts(path).values() if len(tokens_of(text, part)) >= PROMPT]
    if not texts:
        raise ValueError(f"{path}: expected a text of at least {PROMPT} tokens, got none; use longer texts")
    rows, _ = token_rows(text, texts[:count], PROMPT, -(-count // min(len(texts), count)))
    return rows[:count].tolist()
