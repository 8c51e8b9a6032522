"""Training of drafts that read hidden states: losses fall, acceptance rises, fits resume, bad input is refused."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxfed import checkpoint
from jaxspec.drafts import init_draft
from jaxspec.drafts.fresh import KINDS
from jaxspec.federated import Continued, continued
from jaxspec.training import (
    Recipe,
    Schedule,
    _hidden,
    _rows,
    accepted_tokens,
    eagle3_loss,
    eagle_loss,
    fit_draft,
    medusa_loss,
    rank_accuracy,
    reading,
    trained_part,
)
from tests.support.jaxspec import models

SCHEDULE = Schedule(steps=40, batch_size=8, learning_rate=1e-2, warmup=4)
RECIPE = Recipe(steps=3)
PROMPT = 3


@cache
def texts():
    """Greedy continuations of random prompts."""
    prompts = np.random.default_rng(0).integers(models.VOCAB, size=(24, PROMPT)).astype(np.int32)
    return continued(models.target(), prompts, 16).tokens


def made(kind, **options):
    return init_draft(kind, models.target(), heads=3, taps=(1, 2, 3) if kind == "eagle3" else None, **options)


def fitted(draft, tokens=None, **options):
    tokens = texts() if tokens is None else tokens
    options = {"recipe": RECIPE, "schedule": SCHEDULE, "progress": False} | options
    held_out = Continued.of(options.pop("held_out"), PROMPT) if "held_out" in options else None
    return fit_draft(draft, models.target(), Continued.of(tokens, PROMPT), held_out=held_out, **options)


def accepted(draft, tokens=None, window=3):
    tokens = texts() if tokens is None else tokens
    return accepted_tokens(draft, models.target(), tokens, prompt_length=PROMPT, window=window)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_raises_acceptance_and_trains_nothing_of_the_target(kind):
    draft = made(kind)
    trained = fitted(draft)
    assert accepted(trained) > accepted(draft)
    for name in {"embedding", "index"} & set(draft.params):
        assert trained.params[name] is draft.params[name]
    assert jax.tree.map(jnp.shape, trained.params) == jax.tree.map(jnp.shape, draft.params)


@pytest.mark.parametrize("kind", ["eagle3", "medusa"])
def test_the_first_rank_is_the_first_accepted_token(kind):
    draft, text = fitted(made(kind)), texts()
    table = rank_accuracy(draft, models.target(), text, prompt_length=PROMPT, depth=2, ranks=models.VOCAB)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-6)
    assert table[0, 0] == pytest.approx(accepted(draft, window=1))
    shorter = rank_accuracy(draft, models.target(), text, prompt_length=PROMPT, depth=2, ranks=3)
    np.testing.assert_array_equal(shorter, table[:, :3])


def test_a_target_as_its_own_draft_is_always_right():
    table = rank_accuracy(models.target(), models.target(), texts(), prompt_length=PROMPT, depth=3, ranks=2)
    np.testing.assert_array_equal(table, [[1, 0]] * 3)
    with pytest.raises(ValueError, match="expected texts"):
        rank_accuracy(models.target(), models.target(), texts()[:, :4], prompt_length=PROMPT)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "hydra++"])
@pytest.mark.parametrize("window", [1, 2])
def test_accepted_tokens_are_those_of_decoding(kind, window):
    """A window is accepted as a whole where one step decodes it; that share is the gain of its last token."""
    draft, text = fitted(made(kind)), texts()[:2]
    prefixes = [row[:place].tolist() for row in text for place in range(PROMPT, text.shape[1] - window + 1)]
    method = jaxspec.speculative(models.target(), draft, window=window)
    steps = [jaxspec.generate(method, [prefix], window + 1).stats.steps for prefix in prefixes]
    gain = accepted(draft, text, window) - (accepted(draft, text, window - 1) if window > 1 else 0)
    assert gain == pytest.approx(np.mean(np.asarray(steps) == 1))


def test_a_fit_resumes_bit_for_bit(tmp_path, monkeypatch):
    draft, expected = made("eagle3"), fitted(made("eagle3"))
    batch = _rows.TextRows.batch

    def interrupted(*args):
        if args[-1] == 13:
            raise KeyboardInterrupt
        return batch(*args)

    monkeypatch.setattr(_rows.TextRows, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(draft, directory=tmp_path)
    monkeypatch.setattr(_rows.TextRows, "batch", batch)
    chex.assert_trees_all_equal(fitted(draft, directory=tmp_path).params, expected.params)


def test_the_best_on_held_out_text_is_returned_and_the_fit_ends_early(tmp_path):
    """At a rate that destroys the draft, what it began with is the best."""
    draft, rows = fitted(made("medusa")), texts()
    options = {"held_out": rows[:8], "schedule": Schedule(steps=30, batch_size=8, learning_rate=3.0, warmup=1)}
    worse = fitted(draft, rows[8:], directory=tmp_path, **options)
    chex.assert_trees_all_equal(worse.params, draft.params)
    assert checkpoint.latest(tmp_path / "steps") == 6
    chex.assert_trees_all_equal(fitted(draft, rows[8:], directory=tmp_path, **options).params, draft.params)


def test_a_draft_of_a_target_in_bfloat16_is_trained_in_float32_and_keeps_its_type():
    target = models.target()
    target = target._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), target.params))
    draft = init_draft("eagle3", target, taps=(1, 2, 3))
    trained = fit_draft(draft, target, texts(), recipe=RECIPE, schedule=Schedule(steps=2, batch_size=2), progress=False)
    chex.assert_trees_all_equal_dtypes(trained.params, draft.params)
    assert jnp.any(trained.params["fusion"]["matrix"] != draft.params["fusion"]["matrix"])


def test_masked_rows_have_no_gradient():
    draft, target = made("medusa"), models.target()
    loss, own = medusa_loss(draft, target), trained_part(draft)[0]
    batch = {"tokens": texts()[:2], "mask": np.zeros((2, texts().shape[1]), bool)}
    value, gradient = jax.value_and_grad(lambda own: loss(own, batch, jax.random.key(0))[0])(own)
    assert value == 0
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_noise_depends_on_the_key():
    draft, target = made("eagle"), models.target()
    loss, own = eagle_loss(draft, target, noise=0.1), trained_part(draft)[0]
    values = [float(loss(own, {"tokens": texts()[:2]}, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_precomputed_hidden_states_give_the_same_loss():
    draft, target = made("eagle3"), models.target()
    loss, own, tokens = eagle3_loss(draft, target, RECIPE), trained_part(draft)[0], jnp.asarray(texts()[:2])
    hidden = jaxspec.training.hidden_states(target.network, target.params, tokens, draft.drafter.reads.taps)
    batch = {"tokens": tokens, "hidden": tuple(jnp.moveaxis(x, 0, -1) for x in hidden)}
    values = [loss(own, each, jax.random.key(0))[0] for each in ({"tokens": tokens}, batch)]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eagle_loss(made("medusa"), models.target()), "expected a draft of kind Eagle, got Medusa"),
        (lambda: fitted(jaxspec.drafts.prompt_lookup()), "expected a draft of kind Eagle, Eagle3, Medusa, Hydra"),
        (lambda: fitted(made("eagle"), texts()[:, : PROMPT + 2]), r"expected tokens \[n, T\] with T >= 6"),
        (lambda: eagle3_loss(made("eagle3"), models.target(), Recipe(steps=0)), "expected steps >= 1, got 0"),
        (lambda: eagle3_loss(made("eagle3"), models.target(), Recipe(divergence=())), "soft_ce, ce.*got none"),
        (lambda: eagle3_loss(made("eagle3"), models.target(), Recipe(divergence=(("l2", 1.0),))), "got l2"),
        (lambda: trained_part(made("eagle"), ["heads"]), "expected to freeze some of .*got heads"),
        (lambda: accepted(made("eagle"), window=0), "expected a window >= 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_whole_parameters_are_refused_where_only_a_part_is_trained():
    draft = made("eagle")
    with pytest.raises(ValueError, match="expected the trained part"):
        eagle_loss(draft, models.target())(draft.params, {"tokens": texts()[:2]}, jax.random.key(0))


@pytest.mark.parametrize("kind", ["eagle3", "medusa"])
def test_hidden_states_on_disk_give_the_same_draft_and_are_continued(kind, tmp_path, monkeypatch):
    draft, rows = made(kind), texts()
    run, count = _hidden._streams, iter(range(100))

    def interrupted(*args):
        if next(count) == 3:  # two calls ask for shapes
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(_hidden, "_streams", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(draft, rows, directory=tmp_path / "one")
    monkeypatch.setattr(_hidden, "_streams", run)
    found = fitted(draft, rows, directory=tmp_path / "one").params
    (file,) = (tmp_path / "one" / "hidden").iterdir()
    assert file.stat().st_size == _hidden.hidden_bytes(models.target(), draft.drafter.reads.taps, rows)
    monkeypatch.setattr(reading, "MOST_HIDDEN", 0)
    again = fitted(draft, rows, directory=tmp_path / "other").params
    assert not (tmp_path / "other" / "hidden").exists()
    for other in (again, fitted(draft, rows).params):
        chex.assert_trees_all_close(found, other, atol=1e-3)
