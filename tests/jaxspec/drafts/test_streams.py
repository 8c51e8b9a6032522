"""Streaming drafts: the plain draft's tokens in fewer passes."""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import zoo
from jaxspec.drafts import Pending, Proposer
from jaxspec.drafts._branches import Scratch
from jaxspec.drafts._lookahead import RolloutTask, _pass
from jaxspec.drafts.beginning import first_window
from jaxspec.drafts.streams import causal_streams, forward, limited, num_streams
from jaxspec.generation.trace import Passes
from jaxspec.loading.store import load_model, open_model, save_model
from jaxspec.methods import candidates, fallbacks
from jaxspec.models.attention import causal
from jaxspec.models.config import Attention
from jaxspec.text.tokenizer import encode
from jaxspec.training import Schedule, fit_streams, streaming_loss
from jaxspec.verify import Seen, acceptance
from jaxspec.zoo.recipe import held_out_roles
from tests.support.jaxspec import models
from tests.support.jaxspec.fallback_rows import SAMPLED

WINDOW = 5
METHODS = {
    "speculative": lambda draft: models.speculative(WINDOW, draft=draft),
    "mirror": lambda draft: models.mirror(WINDOW, 4, draft=draft, policy=candidates.mirror(6)),
    "hybrid": lambda draft: models.mirror(WINDOW, 4, draft=draft, policy=candidates.hybrid(3, 3, num_candidates=4)),
    "ratio": lambda draft: models.mirror(WINDOW, 4, draft=draft, acceptance=acceptance.ratio(6)),
    "n-grams": lambda draft: models.mirror(WINDOW, 1, draft=draft, fallback=fallbacks.NGram(2)),
}


def decode(name, draft, sampling):
    return jaxspec.generate(METHODS[name](draft), models.PROMPTS, models.NEW_TOKENS, sampling=sampling)


@cache
def texts():
    """Counting, from anywhere: easily foreseen."""
    starts = np.random.default_rng(0).integers(0, models.VOCAB, (64, 1))
    return ((starts + np.arange(14)[None]) % models.VOCAB).astype(np.int32)


@cache
def untrained():
    return jaxspec.streaming(jaxspec.decoder(models.DRAFT, jax.random.key(3)), 2, start=0, rank=16)


@cache
def trained(frozen):
    schedule = Schedule(steps=200, learning_rate=2e-2, warmup=10)
    return fit_streams(untrained(), texts(), frozen=frozen, schedule=schedule, progress=False)


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n != "mirror" else ()) for n in METHODS])
def test_windows_are_those_of_the_plain_draft(name, sampling):
    plain, streamed = (decode(name, draft, sampling) for draft in (models.draft(), models.streaming()))
    assert streamed.tokens == plain.tokens
    counts = ("steps", "accepted", "reused", "needed")
    assert [getattr(streamed.stats, n) for n in counts] == [getattr(plain.stats, n) for n in counts]


def test_the_main_stream_is_the_plain_draft():
    tokens = [
        jaxspec.generate(jaxspec.autoregressive(m), models.PROMPTS, 8).tokens
        for m in (models.draft(), models.streaming())
    ]
    assert tokens[0] == tokens[1]


def rolled(draft, roots=tuple(range(models.VOCAB))):
    """Passes [B, R] of branches from the end of the prompts."""
    request = models.request()
    drafter = models.drafter(draft)
    _, _, state = first_window(drafter, acceptance.match(), draft.params, request, None, WINDOW, 64 - WINDOW)
    at = jnp.broadcast_to(jnp.asarray(request.lengths)[:, None], (2, len(roots)))
    tokens = jnp.broadcast_to(jnp.asarray(roots, jnp.int32)[None], at.shape)
    run = jax.jit(lambda p, c: drafter.roll(p, c, Pending(tokens, at), WINDOW, Proposer(acceptance.match(), None)))
    return run(draft.params, state.cache)[0]


def test_passes_are_counted():
    """J = γ for a plain draft; with k streams no fewer than 1 + ⌈(γ − 1) / (k + 1)⌉, and no more than γ."""
    assert (rolled(models.draft()).passes == WINDOW).all()
    passes = rolled(models.streaming()).passes
    assert ((passes >= 3) & (passes <= WINDOW)).all()
    assert passes.min() < WINDOW  # so that tests of this draft keep guesses at times


def test_trained_streams_guess_right():
    """Those of a frozen draft, which itself says something else."""
    draft = trained(True)
    before, after = (
        jax.jit(streaming_loss(net))(params, {"tokens": jnp.asarray(texts())}, jax.random.key(0))[1]
        for net, params, _ in (untrained(), draft)
    )
    assert after["main"] == before["main"] > 1
    assert before["right 1"] < 0.5 < 0.9 < min(after["right 1"], after["right 2"])


def test_right_guesses_save_passes():
    """A draft that is trained along counts itself: five tokens take a pass for the first and one for every three."""
    found, plain = (rolled(limited(trained(False), count)) for count in (2, 0))
    assert found.tokens.tolist() == plain.tokens.tolist()
    assert found.passes.mean() < 3.5
    assert found.passes.min() == 3


WINDOWED = replace(models.TARGET, num_layers=2, attention=Attention(window=4, windowed=(False, True)))


@pytest.mark.parametrize("with_pending", [False, True])
def test_guesses_are_those_of_one_pass_over_the_text(with_pending):
    """Of branches at different places, of which one has rows of its own before, with a sliding window."""
    draft = models.streaming(2, lambda: models.random_model(WINDOWED, 3))
    request, rule = models.request(), acceptance.match()
    first, _, state = first_window(models.drafter(draft), rule, draft.params, request, None, WINDOW, 64 - WINDOW)
    cache = state.cache
    start = jnp.asarray(request.lengths)[:, None] + (0 if not with_pending else WINDOW)
    roots = Pending(jnp.asarray([[3, 5], [9, 1]], jnp.int32), jnp.broadcast_to(start, (2, 2)))
    pending = Pending(first.tokens[:, -1], start[:, 0] - 1) if with_pending else None
    scratch = Scratch(2, WINDOW, 64)
    task = RolloutTask(draft.network, draft.params, roots, Proposer(rule, None), scratch)
    more, tail = jnp.asarray([[[2], [7]], [[0], [4]]], jnp.int32), jnp.asarray([[[6, 1, 8]] * 2] * 2, jnp.int32)
    none = jnp.zeros((2, 2), jnp.int32)
    run = jax.jit(lambda *args: _pass(task, *args))
    begun = run(cache, none, jnp.concatenate([roots.token[..., None], more], axis=2), Seen(), pending)
    found = run(begun.cache, none + jnp.asarray([[1, 2]]), tail, Seen(), None)
    for row, branch in product(range(2), range(2)):
        own = [int(roots.token[row, branch]), int(more[row, branch, 0])][: 1 + branch]
        before = [*models.PROMPTS[row], *(first.tokens[row].tolist() if with_pending else [])]
        text = [*before, *own, *tail[row, branch].tolist()]
        padded = jnp.asarray([[*text, *[0] * (32 - len(text))]], jnp.int32)  # one program for all lengths
        guesses = guessed(draft.network, draft.params, padded)[: len(text)].tolist()
        assert guesses[-3:] == found.guesses[row, branch].tolist()


@partial(jax.jit, static_argnums=0)
def guessed(network, params, text):
    """What the streams of every place guess, by one pass over a text [1, T]: [T, k]."""
    places = jnp.arange(text.shape[1])[None]
    attends = causal(), causal_streams(2)
    x, _ = forward(network, params, text, places, (None,) * network.config.num_layers, attends)
    return jnp.argmax(network.logits(params, x[:, :, text.shape[1] :]), axis=0).reshape(-1, 2)


@pytest.mark.slow
def test_streams_in_bfloat16(tmp_path):
    """They decode, as the plain draft does, and are loaded as they were saved."""
    short = lambda model: model._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))  # noqa: E731
    plain, streamed = (decode("mirror", short(draft), {}) for draft in (models.draft(), models.streaming()))
    assert streamed.tokens == plain.tokens
    save_model(models.streaming(), tmp_path / "wide")
    save_model(open_model(tmp_path / "wide", dtype="bfloat16"), tmp_path / "short")
    assert load_model(tmp_path / "short").params["streams"]["offset"].dtype == jnp.bfloat16
    mixed = models.streaming()._replace(params={**models.streaming().params, "draft": short(models.draft()).params})
    assert decode("mirror", mixed, {}).tokens == plain.tokens


@pytest.mark.slow
def test_the_embedded_streams_save_passes():
    """Of 7 tokens a window on held-out text, in fewer than 5 passes; the windows are the plain draft's."""
    pair = zoo.load()
    assert pair.streaming is not None
    prompts = [encode(pair.tokenizer, role.text)[:32].tolist() for role in held_out_roles()[:6]]
    found = []
    for draft in (pair.draft, pair.streaming):
        watch = Passes()
        method = jaxspec.mirror(pair.target, draft, exit_layer=pair.exit_layer, policy=candidates.mirror(4))
        found.append(jaxspec.generate(method, prompts, 40, watch=watch))
        if draft is pair.streaming:
            assert watch.mean < 5 <= watch.most <= 7
            assert watch.growth == pytest.approx(7 / watch.mean)
    assert found[0].tokens == found[1].tokens
    assert found[0].stats.accepted == found[1].stats.accepted


def test_training_leaves_a_frozen_draft_as_it_is():
    found = (model.params["draft"] for model in (untrained(), trained(True), trained(False)))
    before, frozen, along = map(jax.tree.leaves, found)
    for one, other in zip(before, frozen, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(before[0], along[0])


def test_the_loss_counts_the_tokens_behind_the_next_one():
    """Against NumPy: the same cross-entropies, from logits of one pass."""
    draft, tokens = models.streaming(), jnp.asarray(texts()[:3, :9])
    loss, aux = streaming_loss(draft.network)(draft.params, {"tokens": tokens}, jax.random.key(0))
    places = jnp.broadcast_to(jnp.arange(8)[None], (3, 8))
    attends = causal(), causal_streams(2)
    x, _ = forward(draft.network, draft.params, tokens[:, :-1], places, (None,), attends)
    logits = np.asarray(draft.network.logits(draft.params, x), np.float64)
    law = logits - np.log(np.exp(logits).sum(axis=0))
    streams = law[:, :, 8:].reshape(models.VOCAB, 3, 8, 2)
    said = np.asarray(tokens)
    pick = lambda table, ahead: np.mean(  # noqa: E731
        [-table[said[b, t + 1 + ahead], b, t] for b in range(3) for t in range(8 - ahead)]
    )
    expected = pick(law[:, :, :8], 0) + (pick(streams[..., 0], 1) + pick(streams[..., 1], 2)) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert set(aux) == {"main", "right 1", "right 2"}


def test_a_stream_sees_its_own_place_and_what_lies_before():
    """Nothing behind a place changes its streams; the streams of other places do not either."""
    draft, tokens = models.streaming(), jnp.asarray(texts()[:1, :8])
    places = jnp.arange(8)[None]

    def streams(said):
        x, _ = forward(draft.network, draft.params, said, places, (None,), (causal(), causal_streams(2)))
        return np.asarray(x[:, 0, 8:]).reshape(-1, 8, 2)

    before, after = streams(tokens), streams(tokens.at[0, 5].set((tokens[0, 5] + 1) % models.VOCAB))
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 0.01


def test_fewer_streams_and_none():
    draft = models.streaming()
    assert num_streams(limited(draft, 1).network) == 1
    assert limited(draft, 0).network is models.draft().network
    one = decode("mirror", limited(draft, 1), {})
    assert one.tokens == models.expected(models.NEW_TOKENS)
    with pytest.raises(ValueError, match="0 to 2 streams"):
        limited(draft, 3)


@pytest.mark.parametrize("sizes", [(2, 2), pytest.param((4, 2), marks=pytest.mark.slow)], ids=str)
def test_streams_on_a_mesh(sizes):
    from tests.jaxspec.devices.test_sharding import wide, wide_draft

    draft = models.streaming(2, wide_draft)
    options = {"target": wide(), "exit_layer": 1, "placement": models.meshes(*sizes)}
    one, other = (
        jaxspec.generate(models.mirror(draft=d, **options), models.PROMPTS, 8).tokens for d in (wide_draft(), draft)
    )
    assert one == other


def test_a_streaming_draft_is_saved_and_loaded(tmp_path):
    save_model(trained(True), tmp_path)
    found = load_model(tmp_path)
    assert found.network is trained(True).network
    assert jax.tree.structure(found.params) == jax.tree.structure(trained(True).params)
    for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(trained(True).params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxspec.streaming(models.streaming()), "expected a plain draft"),
        (lambda: jaxspec.streaming(models.draft(), 0), "count >= 1"),
        (lambda: jaxspec.streaming(models.draft(), start=1), "0 <= start < 1"),
        (lambda: fit_streams(models.draft(), texts()), "expected a draft with streams"),
        (
            lambda: jaxspec.save_huggingface(models.streaming(), "nowhere"),
            "expected a plain model, got one with streams",
        ),
        (lambda: jaxspec.tune(models.target(), models.streaming(), [[1]]), "expected a plain draft to tune with"),
        (lambda: fit_streams(models.streaming(), texts()[:, :4]), "T >= 5"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
