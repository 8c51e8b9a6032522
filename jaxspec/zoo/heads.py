"""The training of the embedded pair's drafts that read hidden states; ``python -m jaxspec train drafts`` runs this.

All learn from the same continuations by the target of its training text, for as many steps. The layer of EAGLE-3 is as
wide as the pair's draft, which makes it as large; its taps lie at or below the exit, where Mirror-SD has them in time.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxspec import federated
from jaxspec.drafts import Draft, init_draft
from jaxspec.models.base import Model
from jaxspec.text import Continued
from jaxspec.training import Schedule, accepted_tokens, fit_draft
from jaxspec.zoo.pairs import DRAFTS, Pair, save
from jaxspec.zoo.recipe import Corpus, PairRecipe, corpus


@dataclass(frozen=True)
class HeadsRecipe:
    """All settings that the drafts depend on.

    Attributes:
        prompts: windows of the training text that the target continues.
        prompt_length: tokens of each.
        new_tokens: of each continuation.
        held_out: as many prompts of held-out text, on which acceptance is measured.
        heads: of Medusa and Hydra.
        hidden: features inside EAGLE's feed-forward block.
        schedule: of every draft.
        seed: of prompts, initial weights and batches.
    """

    prompts: int = 6144
    prompt_length: int = 32
    new_tokens: int = 96
    held_out: int = 64
    heads: tuple[int, int] = (4, 2)
    hidden: int = 256
    schedule: Schedule = field(default_factory=lambda: Schedule(3000, 16, 128, 2e-3))
    seed: int = 0


def fresh(recipe: HeadsRecipe, pair: Pair) -> dict[str, Draft]:
    """Return the drafts before training."""
    start, key = partial(init_draft, target=pair.target), jax.random.key(recipe.seed)
    taps = tuple(range(1, 1 + pair.exit_layer))
    small = replace(pair.target.network.config, hidden=recipe.hidden)
    return {
        "eagle3": start("eagle3", taps=taps, layer=pair.draft.network.config, key=key),
        "eagle": start("eagle", layer=small, key=key),
        "medusa": start("medusa", heads=recipe.heads[0], key=key),
        "hydra": start("hydra", heads=recipe.heads[1], key=key),
    }


def continuations(recipe: HeadsRecipe, pair: Pair, data: Corpus, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the target's continuations of training and of held-out text, kept in ``out``: [n, T] each."""
    random, size = np.random.default_rng(recipe.seed), recipe.prompt_length
    both = []
    for text, count in ((data.train, recipe.prompts), (data.held_out, recipe.held_out)):
        starts = random.integers(0, len(text) - size, count)
        prompts = text[starts[:, None] + np.arange(size)]
        both.append(federated.continued(pair.target, prompts, recipe.new_tokens, True, directory=out).tokens)
    return both[0], both[1]


def run(recipe: HeadsRecipe, pair: Pair, out: Path) -> dict[str, Any]:
    """Train all drafts, write the pair with them to ``out/pair``, and return their sizes and acceptance."""
    data = corpus(PairRecipe(seed=recipe.seed), pair.tokenizer)
    train, held_out = continuations(recipe, pair, data, out)
    drafts, figures = fresh(recipe, pair), {}
    for name, draft in drafts.items():
        options: dict[str, Any] = {"held_out": Continued(held_out, recipe.prompt_length)}
        options |= {"schedule": recipe.schedule, "seed": recipe.seed, "directory": out / DRAFTS / name}
        drafts[name] = fit_draft(draft, pair.target, Continued(train, recipe.prompt_length), **options)
        accepted = accepted_tokens(drafts[name], pair.target, held_out, prompt_length=recipe.prompt_length)
        figures[name] = {"parameters": own_size(drafts[name], pair), "accepted": round(accepted, 3)}
    save(pair._replace(drafts=drafts), out / "pair")
    return figures


def own_size(draft: Model | Draft, pair: Pair) -> int:
    """Return the number of a draft's parameters, those that are the target's own aside."""
    shared = {id(leaf) for leaf in jax.tree.leaves(pair.target.params)}
    return sum(leaf.size for leaf in jax.tree.leaves(draft.params) if id(leaf) not in shared)
