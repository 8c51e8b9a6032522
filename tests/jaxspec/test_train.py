"""Losses against NumPy, and a trainer that resumes bit for bit."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.exits import init_affine_lens
from jaxspec.train import (
    Schedule,
    bits_per_character,
    distillation_loss,
    fit,
    language_model_loss,
    lens_loss,
)
from tests import reference
from tests.jaxspec import models

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(3).integers(models.VOCAB, size=(3, 9)).astype(np.int32)
CORPUS = np.random.default_rng(4).integers(models.VOCAB, size=400).astype(np.int32)
SCHEDULE = Schedule(steps=10, batch_size=2, sequence_length=8, learning_rate=1e-2, warmup=2)


def batch_fn(step):
    return SCHEDULE.batch(CORPUS, 0, step)


def numpy_logits(model, tokens, num_layers=None):
    rows = [reference.decoder_logits(model.params, model.network.config, row, num_layers) for row in tokens]
    return np.stack(rows)


def numpy_losses(model, tokens, labels, num_layers=None):
    logits = numpy_logits(model, tokens, num_layers)
    return np.stack([reference.cross_entropy(rows, row) for rows, row in zip(logits, labels, strict=True)])


def law(logits):
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def masked(batch, rows):
    """The same examples under a mask, and one more of nonsense that does not count."""
    padded = {name: jnp.concatenate([leaf, leaf[:1] * 0]) for name, leaf in batch.items()}
    return {**padded, "mask": jnp.arange(rows + 1) < rows}


@pytest.mark.parametrize(("exit_layer", "exit_weight"), [(None, 0.2), (1, 0.2), (3, 1.5)])
def test_language_model_loss(exit_layer, exit_weight):
    model = models.target()
    loss, aux = language_model_loss(model.network, exit_layer, exit_weight)(model.params, {"tokens": TOKENS}, KEY)
    final = numpy_losses(model, TOKENS[:, :-1], TOKENS[:, 1:]).mean()
    early = 0.0 if exit_layer is None else numpy_losses(model, TOKENS[:, :-1], TOKENS[:, 1:], exit_layer).mean()
    np.testing.assert_allclose(loss, final + exit_weight * early, rtol=1e-4)
    np.testing.assert_allclose(aux["final"], final, rtol=1e-4)
    assert ("exit" in aux) == (exit_layer is not None)


def test_distillation_from_a_teacher():
    teacher, student = models.target(), models.draft()
    loss, aux = distillation_loss(student.network, teacher)(student.params, {"tokens": TOKENS}, KEY)
    wanted, said = (numpy_logits(model, TOKENS) for model in (teacher, student))
    expected = -np.sum(law(wanted) * np.log(law(said)), axis=-1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(aux["agreement"], np.mean(wanted.argmax(-1) == said.argmax(-1)), rtol=1e-5)


def test_distillation_from_labels_counts_those_that_are_not_minus_one():
    student, labels = models.draft(), np.random.default_rng(5).integers(-1, models.VOCAB, size=TOKENS.shape)
    labels[:, :4] = -1
    batch = {"tokens": jnp.asarray(TOKENS), "labels": jnp.asarray(labels, jnp.int32)}
    loss, aux = distillation_loss(student.network)(student.params, batch, KEY)
    counted = labels >= 0
    expected = numpy_losses(student, TOKENS, np.maximum(labels, 0))[counted].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    agrees = numpy_logits(student, TOKENS).argmax(-1) == labels
    np.testing.assert_allclose(aux["agreement"], agrees[counted].mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["language model", "teacher", "labels"])
def test_masked_examples_do_not_count(name):
    student = models.draft()
    loss_fn = {
        "language model": language_model_loss(student.network, 1),
        "teacher": distillation_loss(student.network, models.target()),
        "labels": distillation_loss(student.network),
    }[name]
    batch = {"tokens": jnp.asarray(TOKENS)}
    if name == "labels":
        batch["labels"] = jnp.asarray(np.roll(TOKENS, -1, axis=1))
    expected, _ = loss_fn(student.params, batch, KEY)
    found, _ = loss_fn(student.params, masked(batch, len(TOKENS)), KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    nothing, _ = loss_fn(student.params, {**batch, "mask": jnp.zeros(len(TOKENS), bool)}, KEY)
    assert nothing == 0.0


def test_lens_loss_teaches_the_exit_and_nothing_else():
    target, lens = models.target(), init_affine_lens(models.TARGET.width, 2, KEY)
    loss_fn = lens_loss(target, 2)
    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(lens, {"tokens": jnp.asarray(TOKENS)}, KEY)
    wanted, said = numpy_logits(target, TOKENS), numpy_logits(target, TOKENS, 2)
    np.testing.assert_allclose(loss, -np.sum(law(wanted) * np.log(law(said)), axis=-1).mean(), rtol=1e-4)
    chex.assert_trees_all_equal_shapes(gradient, lens)
    better = lens._replace(up=lens.up - 1e-2 * gradient.up, bias=lens.bias - 1e-2 * gradient.bias)
    assert loss_fn(better, {"tokens": jnp.asarray(TOKENS)}, KEY)[0] < loss


def test_bits_per_character_of_a_model_that_knows_nothing():
    """All tokens equally likely: log₂ V bits a token."""
    model = models.draft()
    model = model._replace(params={**model.params, "embedding": model.params["embedding"] * 0.0})
    bits = bits_per_character(model, CORPUS, characters=2 * len(CORPUS), length=16, batch=4)
    assert bits == pytest.approx(np.log2(models.VOCAB) / 2, rel=1e-5)


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
    """A model of its own for one fit."""
    return models.random_model(models.stranger().network.config, 7)


def fitted(directory=None, schedule=SCHEDULE, batches=batch_fn, **options):
    model = fresh()
    options = {"progress": False, "save_every": 5} | options
    return fit(language_model_loss(model.network), model.params, batches, schedule, directory=directory, **options)


def test_fit_lowers_the_loss():
    model, batch = fresh(), {"tokens": np.tile(np.arange(9, dtype=np.int32), (2, 1))}
    loss_fn = language_model_loss(model.network)
    params = fitted(schedule=replace(SCHEDULE, steps=30), batches=lambda step: batch)
    before, after = (float(loss_fn(p, batch, KEY)[0]) for p in (model.params, params))
    assert after < 0.7 * before


@pytest.mark.parametrize("stopped_at", [5, 7])
def test_fit_resumes_bit_for_bit(tmp_path, stopped_at):
    """Interrupted on and between two saves; the second call starts where the first one was."""
    expected, asked = fitted(), []

    def interrupted(step):
        if step == stopped_at:
            raise KeyboardInterrupt
        return batch_fn(step)

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, batches=interrupted)
    resumed = fitted(tmp_path, batches=lambda step: asked.append(step) or batch_fn(step))
    chex.assert_trees_all_equal(resumed, expected)
    assert asked == list(range(stopped_at, SCHEDULE.steps))


def test_a_finished_fit_is_not_repeated(tmp_path):
    asked = []
    expected = fitted(tmp_path)
    found = fitted(tmp_path, batches=lambda step: asked.append(step) or batch_fn(step))
    chex.assert_trees_all_equal(found, expected)
    assert asked == []


def test_the_start_is_left_alone():
    """Buffers may be donated inside; the caller's parameters may not."""
    model = fresh()
    before = jax.tree.map(np.array, model.params)
    fit(language_model_loss(model.network), model.params, batch_fn, SCHEDULE, progress=False)
    chex.assert_trees_all_equal(jax.tree.map(np.array, model.params), before)


def broken_from(step):
    """A loss that is not finite from a step on; batches tell it where it is."""
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
    """What was good before it can still be resumed."""
    loss_fn, batches = broken_from(6)
    schedule, options = replace(SCHEDULE, steps=40), {"directory": tmp_path, "progress": False, "save_every": 5}
    with pytest.raises(FloatingPointError):
        fit(loss_fn, fresh().params, batches, schedule, **options)
    good, _ = broken_from(99)
    params = fit(good, fresh().params, batches, schedule, **options)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))
