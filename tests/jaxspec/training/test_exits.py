"""Exit heads over frequent tokens: what is fitted, that it is resumed, what is refused."""

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.text.prompts import Continued
from jaxspec.training import ExitRecipe, Schedule, _fit, fit, fit_exits
from jaxspec.training import exits as training_exits
from tests.support.jaxspec import models

RECIPE = ExitRecipe(vocabulary=6, rank=4, schedule=Schedule(steps=60, batch_size=32, learning_rate=1e-2, warmup=5))


@pytest.fixture(scope="module")
def texts():
    """Answers of the tiny target to prompts of two lengths."""
    random, rows, starts = np.random.default_rng(0), [], []
    for number in range(16):
        prompt = random.integers(0, models.VOCAB, 3 + number % 2).tolist()
        rows.append(
            np.pad(prompt + models.greedy_text(models.target(), prompt, 12), (0, 1 - number % 2), constant_values=-1)
        )
        starts.append(len(prompt))
    return Continued(np.asarray(rows, np.int32), np.asarray(starts))


def leaves(fitted):
    return jax.tree.leaves([each.head for each in fitted.values()])


def test_a_fit_lowers_the_loss_of_every_exit(texts, tmp_path):
    losses = {}
    for steps in (1, 60):
        schedule = Schedule(steps=steps, batch_size=32, learning_rate=1e-2, warmup=5)
        fitted = fit_exits(
            models.target(), (1, 2), texts, recipe=ExitRecipe(6, 4, None, schedule), directory=tmp_path, progress=False
        )
        states = jax.random.normal(jax.random.key(0), (3, 16, 1, 64))
        params = [training_exits._trained(each.head) for each in fitted.values()]
        loss = training_exits.exits_loss(models.target(), fitted[1].head.tokens)
        places = training_exits.places_of(models.target(), (1, 2), texts, tmp_path / "hidden", False)
        states = places.at(np.arange(len(places.rows)))
        losses[steps] = [
            float(loss([own], {"hidden": states[[number, 2]]}, jax.random.key(0))[0])
            for number, own in enumerate(params)
        ]
        assert set(fitted) == {1, 2}
        assert all(0 <= each.contained[1] <= each.contained[4] <= each.contained[8] <= 1 for each in fitted.values())
    assert all(after < before for before, after in zip(losses[1], losses[60], strict=True))


def test_a_resumed_fit_ends_as_one_that_was_not_interrupted(texts, tmp_path, monkeypatch):
    options = {"recipe": RECIPE, "progress": False}
    whole = fit_exits(models.target(), (2,), texts, directory=tmp_path / "whole", **options)
    stopping = lambda *args, **named: fit(*args, **{**named, "until": lambda step, params: step == 20})  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(training_exits, "fit", stopping)
        half = fit_exits(models.target(), (2,), texts, directory=tmp_path / "half", **options)
    assert any(not np.array_equal(a, b) for a, b in zip(leaves(whole), leaves(half), strict=True))
    resumed = fit_exits(models.target(), (2,), texts, directory=tmp_path / "half", **options)
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_minutes_fix_the_number_of_steps_once(texts, tmp_path, monkeypatch):
    """A later call, on a machine that is busier, goes on with the same schedule."""
    counts: list = []
    monkeypatch.setattr(
        training_exits, "fit", lambda loss, params, batch, schedule, **named: counts.append(schedule) or params
    )
    for seconds in (0.5, 2.0):
        monkeypatch.setattr(_fit, "_seconds_a_step", lambda *args, seconds=seconds: seconds)
        recipe = ExitRecipe(6, 4, minutes=1.0)
        fit_exits(models.target(), (2,), texts, recipe=recipe, directory=tmp_path, progress=False)
    assert counts[0].steps == counts[1].steps
    assert 0 < counts[0].steps <= int(60 * training_exits.FOR_STEPS / 0.5)
    assert counts[0].warmup < counts[0].steps


@pytest.mark.parametrize(
    ("layers", "recipe", "message"),
    [
        ((), RECIPE, "expected different layers from 1 to 3, got none"),
        ((2, 2), RECIPE, "expected different layers from 1 to 3, got 2, 2"),
        ((4,), RECIPE, "expected different layers from 1 to 3, got 4"),
        ((2,), ExitRecipe(6, 0), "expected rank >= 1 and different ids"),
    ],
)
def test_bad_arguments_are_refused(layers, recipe, message, texts):
    with pytest.raises(ValueError, match=message):
        fit_exits(models.target(), layers, texts, recipe=recipe, progress=False)


def test_one_text_is_too_few(texts):
    with pytest.raises(ValueError, match="expected at least 2 texts to fit exits, got 1"):
        fit_exits(models.target(), (2,), texts.rows(slice(1)), recipe=RECIPE, progress=False)


def test_other_tokens_are_never_sent(texts, tmp_path):
    """Only the frequent tokens of the answers have a finite score; Mirror-SD writes the target's text with them."""
    fitted = fit_exits(models.target(), (2,), texts, recipe=RECIPE, directory=tmp_path, progress=False)[2]
    answers = np.where(np.arange(texts.tokens.shape[1])[None] >= texts.starts[:, None], texts.tokens, -1)
    trained = answers[np.arange(len(answers)) % 8 > 0]
    frequency = np.bincount(trained[trained >= 0], minlength=models.VOCAB)
    ids = np.asarray(fitted.head.tokens)
    assert len(ids) == 6
    assert frequency[ids].min() >= np.delete(frequency, ids).max()
    scores = fitted.head(
        models.target().network, models.target().params, jax.random.normal(jax.random.key(1), (16, 2, 5))
    )
    assert np.array_equal(np.isfinite(scores).all(axis=(1, 2)), np.isin(np.arange(models.VOCAB), ids))
    method = models.mirror(exit=fitted.head, exit_layer=2)
    assert jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()
