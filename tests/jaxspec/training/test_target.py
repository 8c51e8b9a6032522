"""Continued training of a target with an early exit: the loss by hand, what it buys and costs, resumed, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.generation import continued
from jaxspec.training import Schedule, early_exit_loss, exit_cost, fit_target, hidden_states
from tests.support.jaxspec import models

SCHEDULE = Schedule(steps=40, batch_size=8, sequence_length=16, learning_rate=3e-3, warmup=5)


@pytest.fixture(scope="module")
def texts():
    prompts = [np.random.default_rng(row).integers(0, models.VOCAB, 3 + row % 2).tolist() for row in range(16)]
    return continued(models.target(), prompts, 12)


def by_hand(params, tokens, layers, weight):
    """Σ over places of −Σ P log Q, at the last layer and w times at the exits, over the places that have a token."""
    target = models.target()
    filled = jnp.maximum(tokens, 0)
    logits = lambda own, x: np.asarray(jax.nn.log_softmax(target.network.logits(own, x), axis=0))  # noqa: E731
    expected = np.exp(logits(target.params, hidden_states(target.network, target.params, filled)[-1]))
    *early, final = hidden_states(target.network, params, filled, layers)
    counted = np.asarray(tokens) >= 0
    mean = lambda x: float((-(expected * logits(params, x)).sum(0) * counted).sum() / counted.sum())  # noqa: E731
    return mean(final) + weight * sum(mean(x) for x in early)


def test_the_loss_is_that_of_the_last_layer_and_of_the_exits(texts):
    target, tokens = models.target(), jnp.asarray(texts.tokens[:4])
    params = jax.tree.map(lambda leaf: leaf * 1.1, target.params)
    last = hidden_states(target.network, target.params, jnp.maximum(tokens, 0))[-1]
    batch = {"tokens": tokens, "hidden": jnp.moveaxis(last, 0, -1)[None]}
    loss, named = early_exit_loss(target, (2, 1), 0.3)(params, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(by_hand(params, tokens, (1, 2), 0.3), rel=1e-5)
    assert set(named) == {"final", "exit 1", "exit 2"}


def test_the_exit_foresees_more_and_the_target_stays_what_it_was(texts, tmp_path):
    target, options = models.target(), {"schedule": SCHEDULE, "progress": False}
    trained = fit_target(target, (1,), texts, weight=1.0, directory=tmp_path, **options)
    before, after = (exit_cost(each, (1,), texts) for each in (target, trained))
    assert after.contained[1][1] > before.contained[1][1] + 0.02
    assert after.answers < 1.2 * before.answers
    again = fit_target(target, (1,), texts, weight=1.0, directory=tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)


def test_perplexity_is_that_of_the_text(texts):
    target, cost = models.target(), exit_cost(models.target(), (1, 2), texts)
    logs = {False: [], True: []}
    for row, start in zip(texts.tokens, texts.starts, strict=True):
        row = row[row >= 0]
        x = hidden_states(target.network, target.params, jnp.asarray(row)[None])[-1]
        chances = np.asarray(jax.nn.log_softmax(target.network.logits(target.params, x), axis=0))[:, 0]
        for place in range(1, len(row)):
            logs[place >= start].append(chances[row[place], place - 1])
    assert cost.prompts == pytest.approx(np.exp(-np.mean(logs[False])), rel=1e-4)
    assert cost.answers == pytest.approx(np.exp(-np.mean(logs[True])), rel=1e-4)
    assert all(row[1] <= row[4] <= row[8] <= 1 for row in cost.contained.values())


def test_layers_that_the_target_lacks(texts, tmp_path):
    with pytest.raises(ValueError, match="expected different layers from 1 to"):
        fit_target(models.target(), (99,), texts, directory=tmp_path)
