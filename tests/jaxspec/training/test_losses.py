"""Losses against NumPy, in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.training import bits_per_character, distillation_loss, language_model_loss, lens_loss
from jaxspec.verify.exits import init_affine_lens
from tests.support import reference
from tests.support.jaxspec import models

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(3).integers(models.VOCAB, size=(3, 9)).astype(np.int32)
CORPUS = np.random.default_rng(4).integers(models.VOCAB, size=400).astype(np.int32)


def value(loss_fn, params, batch):
    """Loss and auxiliary numbers of one compiled call."""
    return jax.jit(loss_fn)(params, batch, KEY)


def numpy_logits(model, tokens, num_layers=None):
    rows = [reference.decoder_logits(model.params, model.network.config, row, num_layers) for row in tokens]
    return np.stack(rows)


def numpy_losses(model, tokens, labels, num_layers=None):
    logits = numpy_logits(model, tokens, num_layers)
    return np.stack([reference.cross_entropy(rows, row) for rows, row in zip(logits, labels, strict=True)])


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def masked(batch, rows):
    """Add one example of zeros that the mask excludes."""
    padded = {name: jnp.concatenate([leaf, leaf[:1] * 0]) for name, leaf in batch.items()}
    return {**padded, "mask": jnp.arange(rows + 1) < rows}


@pytest.mark.parametrize(("exit_layer", "exit_weight"), [(None, 0.2), (1, 0.2), (3, 1.5)])
def test_language_model_loss(exit_layer, exit_weight):
    model = models.target()
    loss_fn = language_model_loss(model.network, exit_layer, exit_weight)
    loss, aux = value(loss_fn, model.params, {"tokens": TOKENS})
    final = numpy_losses(model, TOKENS[:, :-1], TOKENS[:, 1:]).mean()
    early = 0.0 if exit_layer is None else numpy_losses(model, TOKENS[:, :-1], TOKENS[:, 1:], exit_layer).mean()
    np.testing.assert_allclose(loss, final + exit_weight * early, rtol=1e-4)
    np.testing.assert_allclose(aux["final"], final, rtol=1e-4)
    assert ("exit" in aux) == (exit_layer is not None)


def test_distillation_from_a_teacher():
    teacher, student = models.target(), models.draft()
    loss, aux = value(distillation_loss(student.network, teacher), student.params, {"tokens": TOKENS})
    teacher_logits, student_logits = (numpy_logits(model, TOKENS) for model in (teacher, student))
    expected = -np.sum(softmax(teacher_logits) * np.log(softmax(student_logits)), axis=-1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(
        aux["agreement"], np.mean(teacher_logits.argmax(-1) == student_logits.argmax(-1)), rtol=1e-5
    )


def test_distillation_from_labels_skips_minus_one():
    student, labels = models.draft(), np.random.default_rng(5).integers(-1, models.VOCAB, size=TOKENS.shape)
    labels[:, :4] = -1
    batch = {"tokens": jnp.asarray(TOKENS), "labels": jnp.asarray(labels, jnp.int32)}
    loss, aux = value(distillation_loss(student.network), student.params, batch)
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
    expected, _ = value(loss_fn, student.params, batch)
    result, _ = value(loss_fn, student.params, masked(batch, len(TOKENS)))
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    nothing, _ = value(loss_fn, student.params, {**batch, "mask": jnp.zeros(len(TOKENS), bool)})
    assert nothing == 0.0


def test_lens_loss_trains_the_exit_only():
    target, lens = models.target(), init_affine_lens(models.TARGET.width, 2, KEY)
    loss_fn = lens_loss(target, 2)
    batch, gradient_fn = {"tokens": jnp.asarray(TOKENS)}, jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, _), gradient = gradient_fn(lens, batch, KEY)
    teacher_logits, student_logits = numpy_logits(target, TOKENS), numpy_logits(target, TOKENS, 2)
    np.testing.assert_allclose(
        loss, -np.sum(softmax(teacher_logits) * np.log(softmax(student_logits)), axis=-1).mean(), rtol=1e-4
    )
    chex.assert_trees_all_equal_shapes(gradient, lens)
    better = lens._replace(up=lens.up - 1e-2 * gradient.up, bias=lens.bias - 1e-2 * gradient.bias)
    assert gradient_fn(better, batch, KEY)[0][0] < loss


def test_bits_per_character_of_a_uniform_model():
    """All tokens are equally likely: log₂ V bits per token."""
    model = models.draft()
    model = model._replace(params={**model.params, "embedding": model.params["embedding"] * 0.0})
    bits = bits_per_character(model, CORPUS, characters=2 * len(CORPUS), length=16, batch=4)
    assert bits == pytest.approx(np.log2(models.VOCAB) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="expected more than 16 tokens, got 16"):
        bits_per_character(model, CORPUS[:16], characters=32, length=16)
