"""Helpers that several commands share: flags, printing, prompts."""

import json
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxspec.generation.requests import encoded
from jaxspec.text import Text, token_rows, tokens_of
from jaxspec.text.prompt_files import conversation_of, is_prompt_file, read_prompts, said

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


def prompts_of(
    text: Text | None, count: int, paths: Sequence[Path] = (), exclude: Sequence[Path] = ()
) -> list[list[int]]:
    """Return the token ids of at most ``count`` prompts, in an order that does not change.

    Args:
        text: the model's text handling.
        count: number of prompts.
        paths: files of whole prompts (``is_prompt_file``), put through the chat template if there is one, and texts for
            ``federated.read_texts``, cut into windows of ``PROMPT`` tokens; none: beginnings of held-out Shakespeare
            roles. Files take turns.
        exclude: files of whole prompts that are left out.

    Raises:
        ValueError: the model has no tokenizer, no text is as long as a prompt, or nothing is left.
    """
    from jaxspec.zoo.recipe import held_out_roles

    text = with_tokenizer(text)
    if not paths:
        return [tokens_of(text, role.text)[:PROMPT].tolist() for role in held_out_roles()[:count]]
    seen = {said(prompt) for path in exclude for prompt in read_prompts(path)}
    rows = [_whole(text, path, count, seen) if is_prompt_file(path) else _windows(text, path, count) for path in paths]
    return [row for each in zip_longest(*rows) for row in each if row is not None][:count]


def _whole(text: Text, path: Path, count: int, exclude: set[str]) -> list[list[int]]:
    """Return prompts of a file, evenly spaced, as ``generate --chat`` would begin with them."""
    prompts = [prompt for prompt in read_prompts(path) if said(prompt) not in exclude]
    if not prompts:
        raise ValueError(f"{path}: expected prompts that are not left out, got none; leave --exclude out")
    chosen = [prompts[place] for place in np.linspace(0, len(prompts) - 1, min(count, len(prompts))).astype(int)]
    return [
        ids.tolist() for ids in encoded([conversation_of(each) for each in chosen] if text.template else chosen, text)
    ]


def _windows(text: Text, path: Path, count: int) -> list[list[int]]:
    """Return windows of texts, shuffled."""
    from jaxspec.federated import read_texts

    texts = [part for part in read_texts(path).values() if len(tokens_of(text, part)) >= PROMPT]
    if not texts:
        raise ValueError(f"{path}: expected a text of at least {PROMPT} tokens, got none; use longer texts")
    rows, _ = token_rows(text, texts, PROMPT, -(-count // len(texts)))
    return np.random.default_rng(0).permutation(rows)[:count].tolist()
