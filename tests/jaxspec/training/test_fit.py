"""The trainer: batches are a function of (seed, step), and a fit resumes bit for bit."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.training import Schedule, fit, language_model_loss
from tests.support.jaxspec import models

CORPUS = np.random.default_rng(4).integers(models.VOCAB, size=400).astype(np.int32)
SCHEDULE = Schedule(steps=10, batch_size=2, sequence_length=8, learning_rate=1e-2, warmup=2)


def batch_fn(step):
    return SCHEDULE.batch(CORPUS, 0, step)


def test_batches_are_windows_of_the_corpus_and_a_function_of_seed_and_step():
    corpus = np.arange(1000, dtype=np.int32)
    batch = SCHEDULE.batch(corpus, 0, 7)["tokens"]
    assert batch.shape == (2, 9)
    assert np.all(np.diff(batch, axis=1) == 1)
    np.testing.assert_array_equal(batch, SCHEDULE.batch(corpus, 0, 7)["tokens"])
    for seed, step in [(0, 8), (1, 7)]:
        assert np.any(batch != SCHEDULE.batch(corpus, seed, step)["tokens"])


def test_every_token_of_the_corpus_can_be_drawn():
    corpus = np.arange(12, dtype=np.int32)
    drawn = {int(token) for step in range(60) for token in SCHEDULE.batch(corpus, 0, step)["tokens"].ravel()}
    assert drawn == set(range(12))


def fresh():
    """Make a new model for one fit."""
    return models.random_model(models.stranger().network.config, 7)


def fitted(directory=None, schedule=SCHEDULE, batches=batch_fn, **options):
    model = fresh()
    options = {"progress": False, "save_every": 5} | options
    return fit(language_model_loss(model.network), model.params, batches, schedule, directory=directory, **options)


def test_fit_lowers_the_loss():
    model, batch = fresh(), {"tokens": np.tile(np.arange(9, dtype=np.int32), (2, 1))}
    loss_fn = jax.jit(language_model_loss(model.network))
    params = fitted(schedule=replace(SCHEDULE, steps=30), batches=lambda step: batch)
    before, after = (float(loss_fn(p, batch, jax.random.key(0))[0]) for p in (model.params, params))
    assert after < 0.7 * before


@pytest.mark.parametrize("stopped_at", [5, 7])
def test_fit_resumes_bit_for_bit(tmp_path, stopped_at):
    """Interrupt at a save and between two saves; the second call continues at the same step."""
    expected, steps_drawn = fitted(), []

    def interrupted(step):
        if step == stopped_at:
            raise KeyboardInterrupt
        return batch_fn(step)

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, batches=interrupted)
    resumed = fitted(tmp_path, batches=lambda step: steps_drawn.append(step) or batch_fn(step))
    chex.assert_trees_all_equal(resumed, expected)
    assert steps_drawn == list(range(stopped_at, SCHEDULE.steps))


def test_a_finished_fit_is_not_repeated(tmp_path):
    steps_drawn = []
    expected = fitted(tmp_path)
    repeated = fitted(tmp_path, batches=lambda step: steps_drawn.append(step) or batch_fn(step))
    chex.assert_trees_all_equal(repeated, expected)
    assert steps_drawn == []


def test_initial_parameters_are_not_modified():
    """Buffers may be donated inside, but not those of the caller."""
    model = fresh()
    before = jax.tree.map(np.array, model.params)
    fit(language_model_loss(model.network), model.params, batch_fn, SCHEDULE, progress=False)
    chex.assert_trees_all_equal(jax.tree.map(np.array, model.params), before)


def broken_from(step):
    """Return a loss that is NaN from a step on, and batches that contain the step number."""
    inner = language_model_loss(models.stranger().network)

    def loss_fn(params, batch, key):
        loss, aux = inner(params, {"tokens": batch["tokens"]}, key)
        return loss * jnp.where(batch["step"] >= step, jnp.nan, 1.0), aux

    return loss_fn, lambda at: {**batch_fn(at), "step": np.int32(at)}


def test_a_loss_that_is_not_finite_stops_the_fit():
    loss_fn, batches = broken_from(4)
    with pytest.raises(FloatingPointError, match=r"step \d+: .*nan"):
        fit(loss_fn, fresh().params, batches, SCHEDULE, progress=False)


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path):
    """The last good step can still be resumed."""
    loss_fn, batches = broken_from(6)
    schedule, options = replace(SCHEDULE, steps=40), {"directory": tmp_path, "progress": False, "save_every": 5}
    with pytest.raises(FloatingPointError):
        fit(loss_fn, fresh().params, batches, schedule, **options)
    good, _ = broken_from(99)
    params = fit(good, fresh().params, batches, schedule, **options)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))
