"""Compare tokenizers of characters and byte pairs: one small pair each, the same recipe; one JSON object per line.

    python benchmarks/vocabulary.py [--steps 400] [--prompts 8] [--json]

Each line: vocabulary, characters per token, accepted length (window 7), and tokens per second of speculative decoding
over those of autoregressive decoding with the same target, medians of interleaved runs on one device.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import jaxspec
from jaxspec.cli._bench_methods import measure
from jaxspec.models.config import DecoderConfig
from jaxspec.text.tokenizer import encode
from jaxspec.training import Schedule
from jaxspec.zoo.recipe import PairRecipe, corpus, held_out_roles, train_draft, train_target

SMALL = PairRecipe(
    target=DecoderConfig(1, 192, 4, 4, 2, 48, 512), draft=DecoderConfig(1, 96, 1, 4, 2, 24, 256), exit_layer=2
)


@dataclass(frozen=True)
class Options:
    """Optimiser steps of target and draft, held-out prompts, new tokens, interleaved rounds, vocabulary sizes."""

    steps: int = 400
    prompts: int = 8
    new_tokens: int = 128
    rounds: int = 3
    vocabularies: tuple[int, ...] = (0, 512, 1024)
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def row(vocab_size: int | None, options: Options, directory: Path) -> dict[str, Any]:
    """Train and measure one pair."""
    schedule = Schedule(steps=options.steps)
    recipe = replace(SMALL, vocab_size=vocab_size, target_schedule=schedule, draft_schedule=schedule)
    data = corpus(recipe)
    target = train_target(recipe, data, directory / "target", recipe.exit_layer)
    draft = train_draft(recipe, data, target, directory / "draft")
    roles = held_out_roles()[: options.prompts]
    prompts = [encode(data.tokenizer, role.text[:256])[:64].tolist() for role in roles]
    methods = {"plain": jaxspec.autoregressive(target), "drafted": jaxspec.speculative(target, draft, 7)}
    runs: dict[str, list[Any]] = {name: [] for name in methods}
    for _ in range(options.rounds + 1):
        for name, method in methods.items():
            runs[name].append(measure(method, prompts, options.new_tokens))
    speed = {name: float(np.median([run.tokens_per_second for run in many[1:]])) for name, many in runs.items()}
    return {
        "vocabulary": data.tokenizer.get_vocab_size(),
        "characters_per_token": round(data.held_out_characters / len(data.held_out), 3),
        "accepted_length": round(runs["drafted"][-1].accepted_length, 3),
        "ratio_to_autoregressive": round(speed["drafted"] / speed["plain"], 3),
    }


def main() -> None:
    """Print one line per tokenizer."""
    options = tyro.cli(Options, description=__doc__)
    for size in options.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(row(size or None, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
