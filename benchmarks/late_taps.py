"""The suite ``late-taps`` of decode.py: hidden states above the exit under Mirror-SD, guessed by the draft or by maps.

Trains EAGLE-3 of the embedded target on the default taps (2, L//2, L−3), like the shipped one with taps up to the exit
otherwise, in ``--out`` (an interrupted run goes on from there). Under Mirror-SD its late features are not there when
branches begin. ``own``: its own output stands in; ``imputed``: affine maps of the exit's hidden state do
(``training.fit_imputation``). ``kept``: accepted tokens a step over those of speculative decoding with the same draft.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mirror import prompts_of

import jaxspec
from jaxspec import zoo
from jaxspec.drafts import init_draft
from jaxspec.methods.candidates import mirror
from jaxspec.text import Continued
from jaxspec.training import fit_draft, fit_imputation
from jaxspec.zoo.heads import HeadsRecipe, continuations
from jaxspec.zoo.recipe import PairRecipe, corpus

WINDOWS, BUDGETS = (3, 5, 7), (4, 8)
RECIPE = HeadsRecipe()


def trained(pair: zoo.Pair, out: Path, steps: int) -> tuple[Any, np.ndarray]:
    """Return the draft with late taps, and the text that it was trained on."""
    texts, held_out = continuations(RECIPE, pair, corpus(PairRecipe(), pair.tokenizer), out)
    draft = init_draft("eagle3", pair.target, layer=pair.draft.network.config)
    schedule = replace(RECIPE.schedule, steps=steps)
    rows, unseen = (Continued(each, RECIPE.prompt_length) for each in (texts, held_out))
    return fit_draft(draft, pair.target, rows, held_out=unseen, schedule=schedule, directory=out / "late"), texts


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield a line for every window, budget and way to fill in late features."""
    pair = zoo.load(options.pair or "shakespeare")
    draft, texts = trained(pair, options.out, options.steps)
    ways = {"own": draft, "imputed": fit_imputation(draft, pair.target, pair.exit_layer, texts[:512])}
    if "eagle3" in pair.drafts:
        ways["early taps"] = pair.drafts["eagle3"]
    prompts, new = prompts_of(pair, options.prompts), options.new_tokens
    plain = jaxspec.generate(jaxspec.autoregressive(pair.target), prompts, new).tokens
    for window in WINDOWS:
        for way, made in ways.items():
            chain = jaxspec.generate(jaxspec.speculative(pair.target, made, window), prompts, new)
            for budget in BUDGETS:
                shared: dict[str, Any] = {"exit_layer": pair.exit_layer, "exit": pair.exit}
                method = jaxspec.mirror(
                    pair.target, made, window=window, num_candidates=4, policy=mirror(budget), **shared
                )
                found = jaxspec.generate(method, prompts, new)
                yield {
                    "late": way,
                    "window": window,
                    "branches": budget,
                    "accepted_length": round(found.stats.accepted_length, 3),
                    "of_speculative": round(chain.stats.accepted_length, 3),
                    "kept": round(found.stats.accepted_length / chain.stats.accepted_length, 3),
                    "reuse_rate": round(found.stats.reuse_rate, 3),
                    "identical": found.tokens == chain.tokens == plain,
                    "tokens_compared": sum(map(len, plain)),
                }
