"""Drafts whose heads score some tokens only, and small language models made of a target."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import Model, acceptance
from jaxspec.drafts import frequent_tokens, init_draft, small_draft
from jaxspec.drafts.fresh import KINDS
from jaxspec.loading import load_draft, load_model, save_draft, save_model
from jaxspec.models import Attention, network
from jaxspec.models.heads import narrowed, spread, token_index, tokens_of_head
from jaxspec.text import Continued
from jaxspec.training import Schedule, accepted_tokens, fit_draft, hidden_states
from jaxspec.training.plain import plain_loss
from tests.support.jaxspec import models

IDS = [1, 3, 4, 7, 9]
SCHEDULE = Schedule(steps=60, batch_size=8, learning_rate=1e-2, warmup=4)


def texts(seed=0, count=24):
    prompts = np.random.default_rng(seed).integers(models.VOCAB, size=(count, 3)).astype(np.int32)
    return jaxspec.generate(jaxspec.autoregressive(models.target()), prompts.tolist(), 16, stop=[]).tokens, prompts


def continuations(seed=0):
    new, prompts = texts(seed)
    return Continued(np.concatenate([prompts, np.asarray(new, np.int32)], axis=1), 3)


def noisy(draft):
    """A draft whose layers are no longer the target's."""
    keys = iter(jax.random.split(jax.random.key(5), 64))
    layers = jax.tree.map(
        lambda leaf: leaf * (1 + 0.3 * jax.random.normal(next(keys), leaf.shape)), draft.params["layers"]
    )
    return draft._replace(params={**draft.params, "layers": layers})


def test_rows_of_a_head():
    index = token_index(IDS, models.VOCAB)
    np.testing.assert_array_equal(tokens_of_head(index), IDS)
    own = jax.random.normal(jax.random.key(0), (len(IDS), 2, 3))
    logits = np.asarray(spread(own, index))
    np.testing.assert_array_equal(logits[IDS], own)
    assert np.all(np.isneginf(np.delete(logits, IDS, axis=0)))


def test_a_narrowed_head_scores_as_the_whole_one():
    target = models.target()
    x = hidden_states(target.network, target.params, jnp.asarray([[1, 5, 3]]))[-1]
    few = narrowed(target, IDS)
    whole = target.network.logits(target.params, x)
    np.testing.assert_allclose(few.network.logits(few.params, x), whole[jnp.asarray(IDS)], rtol=1e-6)
    with pytest.raises(ValueError, match="expected a decoder whose head scores every token"):
        narrowed(small_draft(target, vocabulary=IDS), [1])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"from_layers": (0, 3)}])
def test_a_small_draft_is_made_of_the_target(options):
    target = models.target()
    draft = small_draft(target, **options)
    assert draft.params["embedding"] is target.params["embedding"]
    assert len(draft.params["layers"]) == draft.network.config.num_layers == (2 if options else 1)
    if "from_layers" in options:
        assert draft.params["layers"] == [target.params["layers"][index] for index in (0, 3)]
    everything = small_draft(target, from_layers=range(4), vocabulary=IDS)
    tokens = jnp.asarray([[1, 5, 3, 2]])
    own, whole = (
        model.network.logits(model.params, hidden_states(model.network, model.params, tokens)[-1])
        for model in (everything, target)
    )
    np.testing.assert_allclose(own[jnp.asarray(IDS)], whole[jnp.asarray(IDS)], rtol=1e-5)
    assert bool(jnp.all(jnp.isneginf(jnp.delete(own, jnp.asarray(IDS), axis=0))))


def test_layers_of_the_target_keep_their_windows():
    attention = Attention(window=4, windowed=(True, False, True, False))
    config = replace(models.TARGET, attention=attention)
    target = Model(network(config), models.target().params)
    chosen = small_draft(target, from_layers=(1, 2)).network.config
    assert [chosen.attention.is_windowed(layer) for layer in range(2)] == [False, True]
    assert not small_draft(target, num_layers=2).network.config.attention.is_windowed(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 1, "from_layers": (0,)}, "expected num_layers or from_layers, got both"),
        ({"from_layers": (2, 1)}, "expected ascending layers from 0 to 3"),
        ({"from_layers": (0, 4)}, "expected ascending layers from 0 to 3"),
        ({"from_layers": ()}, "expected ascending layers from 0 to 3"),
        ({"vocabulary": [1, 1]}, "expected fewer than 11 different tokens"),
        ({"vocabulary": [11]}, "expected fewer than 11 different tokens"),
        ({"vocabulary": range(11)}, "expected fewer than 11 different tokens"),
    ],
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_draft(models.target(), **options)


@pytest.mark.parametrize("rule", [acceptance.match(), acceptance.ratio()], ids=["match", "ratio"])
@pytest.mark.parametrize("method", ["speculative", "mirror"])
def test_tokens_are_those_of_plain_decoding(method, rule):
    target = models.target()
    draft = small_draft(target, from_layers=(0,), vocabulary=IDS)
    if method == "mirror":
        made = jaxspec.mirror(target, draft, window=3, num_candidates=2, exit_layer=2, acceptance=rule)
    else:
        made = jaxspec.speculative(target, draft, 3, acceptance=rule)
    plain, own = (
        jaxspec.generate(each, models.PROMPTS, 12, stop=[]) for each in (jaxspec.autoregressive(target), made)
    )
    assert own.tokens == plain.tokens
    assert own.stats.verified > 0


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole head", "some tokens"])
def test_a_small_draft_learns_and_its_embedding_stays(ids):
    target, data = models.target(), continuations()
    draft = noisy(small_draft(target, from_layers=range(4), vocabulary=ids))
    trained = fit_draft(draft, target, data, schedule=SCHEDULE, progress=False)
    before, after = (accepted_tokens(each, target, data, window=3) for each in (draft, trained))
    assert after > before + 0.2
    if ids is not None:
        chex.assert_trees_all_equal(trained.params["embedding"], target.params["embedding"])
        np.testing.assert_array_equal(trained.params["index"], draft.params["index"])


def test_the_loss_is_the_cross_entropy_over_the_heads_tokens():
    target, rows = models.target(), continuations().tokens[:3]
    draft = small_draft(target, from_layers=(0,), vocabulary=IDS)
    loss, aux = plain_loss(draft, target)(draft.params, {"tokens": rows}, jax.random.key(0))
    logits = [
        np.asarray(model.network.logits(model.params, hidden_states(model.network, model.params, rows)[-1]))[IDS]
        for model in (target, draft)
    ]
    p, q = (np.exp(each) / np.exp(each).sum(axis=0) for each in logits)
    assert float(loss) == pytest.approx(-(p * np.log(q)).sum(axis=0).mean(), rel=1e-4)
    assert float(aux["agreement"]) == pytest.approx((p.argmax(axis=0) == q.argmax(axis=0)).mean())


def test_the_acceptance_along_texts_is_that_of_decoding_from_every_place():
    target, draft, data = models.target(), models.draft(), continuations()
    found = accepted_tokens(draft, target, data, window=2)
    values = []
    for row in data.tokens:
        logits = [
            np.asarray(m.network.logits(m.params, hidden_states(m.network, m.params, row[None])[-1])).argmax(axis=0)[0]
            for m in (target, draft)
        ]
        same = logits[0] == logits[1]
        values.append([(same[t], same[t] & same[t + 1]) for t in range(2, len(row) - 2)] + [(same[len(row) - 2], None)])
    first = np.mean([bool(one) for row in values for one, _ in row])
    both = np.mean([bool(two) for row in values for _, two in row if two is not None])
    assert found == pytest.approx(first + both, abs=1e-6)


def test_a_small_draft_is_saved_and_read(tmp_path):
    draft = small_draft(models.target(), from_layers=(0,), vocabulary=IDS)
    save_model(draft, tmp_path)
    again = load_model(tmp_path)
    chex.assert_trees_all_equal(again.params, draft.params)
    assert again.network is draft.network
    with pytest.raises(ValueError, match="head"):
        jaxspec.save_huggingface(draft, tmp_path / "published")


@pytest.mark.parametrize("kind", KINDS)
def test_heads_over_some_tokens_of_every_kind(kind, tmp_path):
    target, data = models.target(), continuations()
    taps = (1, 2, 3) if kind == "eagle3" else None
    draft = init_draft(kind, target, heads=3, taps=taps, vocabulary=IDS)
    trained = fit_draft(draft, target, data, schedule=replace(SCHEDULE, steps=20), progress=False)
    np.testing.assert_array_equal(tokens_of_head(trained.params["index"]), IDS)
    method, plain = jaxspec.speculative(target, trained, 2), jaxspec.autoregressive(target)
    found = jaxspec.generate(method, models.PROMPTS, 12, stop=[])
    assert found.tokens == jaxspec.generate(plain, models.PROMPTS, 12, stop=[]).tokens
    save_draft(trained, tmp_path)
    again = load_draft(tmp_path, target, taps=taps, report=lambda line: None)
    assert again.drafter == trained.drafter
    chex.assert_trees_all_close(again.params, trained.params, atol=0)


def test_frequent_tokens_leave_out_padding():
    np.testing.assert_array_equal(frequent_tokens(np.asarray([[5, 5, 2, -1], [2, 7, 5, -1]]), 2, 9), [2, 5])
