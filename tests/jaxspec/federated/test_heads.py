"""Federated drafts of every kind: what is learned, what is sent, what is refused, and that the result decodes."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import federated
from jaxspec.drafts import init_draft, small_draft
from jaxspec.federated import VALIDATION, FederatedSetup, Federation, TextProblem, _learning
from jaxspec.training import Recipe, draft_task
from tests.support.jaxspec import models

PROMPT, WINDOW = 4, 2
SETTINGS = Federation(rounds=4, cohort_size=2, local_steps=3, batch_size=4, evaluate_every=4, seed=1)
RECIPE = Recipe(steps=2)
KINDS = "eagle3", "medusa", "hydra", "plain"
KNOWN = (0, 1, 2, 3, 4, 5, 6, 7)


@cache
def draft_of(kind):
    if kind == "plain":
        return small_draft(models.target(), num_layers=1, vocabulary=KNOWN)
    taps = (1, 2, 3) if kind == "eagle3" else None
    return init_draft(kind, models.target(), heads=2, taps=taps)


@cache
def texts():
    prompts = np.random.default_rng(3).integers(models.VOCAB, size=(24, PROMPT)).astype(np.int32)
    return federated.continued(models.target(), prompts, 12)


@cache
def setup_of(kind, **options):
    """Four clients of five texts each, and four texts to evaluate on."""
    draft, target = draft_of(kind), models.target()
    learning = _learning.learning_of(draft, target, WINDOW)
    problem = TextProblem(
        learning.examples(texts().rows(slice(20)), np.repeat(range(4), 5), None),
        {VALIDATION: texts().rows(slice(20, None))},
    )
    return FederatedSetup(draft, problem, SETTINGS, WINDOW, None, False, target, recipe=RECIPE)


def loss_of(setup, params):
    """Loss of all parameters of a draft over all clients' examples."""
    task = draft_task(setup.draft, setup.target, RECIPE)
    own, data = {name: params[name] for name in task.own}, texts().rows(slice(20))
    mask = np.arange(data.tokens.shape[1])[None] >= np.full((20, 1), PROMPT)
    return float(jax.jit(task.loss)(own, {"tokens": data.tokens, "mask": mask}, jax.random.key(0))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind):
    """A few rounds lower the loss and raise acceptance; what is the target's own is not trained."""
    setup = setup_of(kind)
    outcome = federated.run(setup, "fedspeed", 0.3)
    assert loss_of(setup, outcome.params) < loss_of(setup, setup.draft.params)
    assert outcome.accepted[-1] >= outcome.accepted[0]
    for name in {"embedding", "index"} & set(setup.draft.params):
        np.testing.assert_array_equal(outcome.params[name], setup.draft.params[name])
    assert outcome.message_bytes == 2 * bytes_of(setup.learning.own)
    assert setup.metric == ("accepted_length" if kind == "plain" else "accepted_tokens")


def bytes_of(tree):
    return sum(4 * leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_low_rank_updates_are_what_is_sent(kind):
    setup = setup_of(kind)
    start, own = setup.draft.params, setup.learning.own
    head = {name: own[name] for name in ("head", "heads", "head_biases") if name in own}
    outcome = federated.run(replace(setup, send="head"), "fedavg", 0.3)
    assert outcome.message_bytes == bytes_of(head)
    changed = {name for name in start if not_equal(outcome.params[name], start[name])}
    assert changed <= set(head)
    assert changed
    rank = 2
    matrices = [leaf for leaf in jax.tree.leaves(own) if leaf.ndim > 1]
    low = sum(4 * rank * (leaf.shape[-1] + leaf.size // leaf.shape[-1]) for leaf in matrices)
    updated = replace(setup, send="lora", lora=federated.LoRA(rank, 4.0))
    outcome = federated.run(updated, "fedavg", 0.3)
    assert outcome.message_bytes == low
    assert loss_of(setup, outcome.params) < loss_of(setup, start)
    assert jax.tree.map(jnp.shape, outcome.params) == jax.tree.map(jnp.shape, start)


def not_equal(a, b):
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
