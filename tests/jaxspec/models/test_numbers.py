"""Logits that are NaN or infinite, in the target, the draft or the exit: an error or a warning, never silent output."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import Model, Sampling, federated
from jaxspec.methods import candidates, fallbacks
from jaxspec.text.tokenizer import train_tokenizer
from jaxspec.verify import acceptance
from jaxspec.verify.keys import RESIDUAL, gumbel
from jaxspec.verify.sampling import INVALID
from tests.jaxspec.verify.test_sampling import asked, positions_of, random_logits
from tests.support.jaxspec import models, own_models

VOCAB, NEW = models.VOCAB, 14
#: Every token is followed by the next one, in two rings; one prompt in either.
NEXT = [1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 6]
PROMPTS = [[0], [6, 7]]
#: A token of the first ring, and its position in the first text.
TOKEN, POSITION = 5, 4
#: What logits may look like that are no numbers.
BROKEN = {"nan": np.nan, "infinity": np.inf, "nothing possible": -np.inf}
SAMPLED = Sampling(0.9, top_k=6, top_p=0.95, min_p=0.01, repetition_penalty=1.2, seed=4)


@cache
def table():
    """A model that depends on the last token only, so that NaN after one token spoils no other."""
    net = replace(
        own_models.bigram().network, embed=lambda params, tokens: jnp.moveaxis(params["table"][tokens], -1, 0)
    )
    return Model(net, {"table": 5.0 * jnp.eye(VOCAB)[jnp.asarray(NEXT)] + random_logits(VOCAB, VOCAB, scale=0.5)})


def broken(model, token, value=np.nan):
    """The model with other logits after a token."""
    return model._replace(params={"table": model.params["table"].at[token].set(value)})


@cache
def draft():
    """A draft that agrees with the target at some tokens."""
    noise = 3.0 * jax.random.normal(jax.random.key(9), (VOCAB, VOCAB))
    return table()._replace(params={"table": table().params["table"] + noise})


BUILD = {
    "autoregressive": lambda target, **options: jaxspec.autoregressive(target),
    "speculative": lambda target, **options: jaxspec.speculative(target, options.pop("draft", draft()), 3, **options),
    "mirror": lambda target, **options: mirror(target, **options),
}


def mirror(target, **options):
    options = {"policy": candidates.hybrid(2, 2, num_candidates=2), "draft": draft()} | options
    return models.mirror(3, 2, 1, target=target, **options)


@cache
def text(sampling=None):
    return jaxspec.generate(jaxspec.autoregressive(table()), PROMPTS, NEW, sampling=sampling).tokens


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", BUILD)
def test_a_target_without_a_next_token_stops_there(name, kind):
    with pytest.raises(FloatingPointError, match=r"NaN or infinity in sequence 0 \(position 6\); ") as caught:
        jaxspec.generate(BUILD[name](broken(table(), TOKEN, BROKEN[kind])), PROMPTS, NEW)
    output = caught.value.output
    assert "in the target's parameters: table" in str(caught.value)
    assert output.tokens[0] == text()[0][: POSITION + 1] == [1, 2, 3, 4, 5]
    assert output.tokens[1] == text()[1][: len(output.tokens[1])]
    assert len(output.tokens[1]) > 0
    assert set(output.finish_reason) <= {"error", "length"}
    assert output.finish_reason[0] == "error"
    assert np.isfinite(sum(output.log_probabilities, [])).all()
    assert output.stats.accepted <= output.stats.new_tokens == sum(map(len, output.tokens))


@pytest.mark.parametrize("rule", [acceptance.match(), acceptance.ratio(4)], ids=["match", "ratio"])
def test_a_sampled_text_stops_there_as_well(rule):
    """Filters must not drop the NaN and keep the other tokens."""
    bad = table()._replace(params={"table": table().params["table"].at[:, 2].set(-np.nan)})
    for method in (jaxspec.autoregressive(bad), jaxspec.speculative(bad, draft(), 3, acceptance=rule)):
        with pytest.raises(jaxspec.NonFiniteLogits, match=r"sequence 0 \(position 1\), 1 \(position 2\)") as caught:
            jaxspec.generate(method, PROMPTS, NEW, sampling=SAMPLED)
        assert caught.value.output.tokens == [[], []]
        assert caught.value.output.stats.accepted == 0


def test_a_stream_shows_what_came_before():
    tokenizer, alphabet = train_tokenizer(["abcdefghij"]), "\ufffdabcdefghij"
    method, shown = BUILD["speculative"](broken(table(), TOKEN)), []
    with pytest.raises(jaxspec.NonFiniteLogits):
        shown.extend(jaxspec.stream(method, PROMPTS[0], NEW, tokenizer=tokenizer))
    assert "".join(shown) == "".join(alphabet[token] for token in text()[0][: POSITION + 1])


def test_float16_that_overflows_is_named():
    """Its weights are numbers, and the same ones in bfloat16 decode."""
    narrow, wide = (
        models.draft()._replace(
            params=jax.tree.map(lambda leaf, kind=kind: (100 * leaf).astype(kind), models.draft().params)
        )
        for kind in ("float16", "bfloat16")
    )
    assert len(jaxspec.generate(jaxspec.autoregressive(wide), models.PROMPTS, 2).tokens[0]) == 2
    with pytest.raises(jaxspec.NonFiniteLogits, match="overflow: load it in bfloat16 or float32"):
        jaxspec.generate(jaxspec.autoregressive(narrow), models.PROMPTS, 2)


DRAFTED = {
    "speculative": lambda **options: BUILD["speculative"](table(), **options),
    "from the exit": lambda **options: mirror(table(), policy=candidates.mirror(2), **options),
    "from both": lambda **options: mirror(table(), **options),
    "without branches": lambda **options: mirror(table(), policy=candidates.none(), **options),
    "short": lambda **options: mirror(table(), policy=candidates.none(), fallback=fallbacks.Short(2), **options),
}


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DRAFTED)
def test_a_draft_of_nan_changes_nothing_and_is_never_accepted(name, sampling):
    """The argmax of NaN is token 0, which the target also generates at times."""
    method = DRAFTED[name](draft=draft()._replace(params={"table": jnp.full((VOCAB, VOCAB), jnp.nan)}))
    with pytest.warns(RuntimeWarning, match="the draft's logits were NaN or infinite at"):
        result = jaxspec.generate(method, PROMPTS, NEW, sampling=sampling)
    assert result.tokens == text(sampling)
    assert 0 in sum(result.tokens, [])
    stats = result.stats
    assert (stats.accepted, stats.verified, stats.steps) == (0, 0, 2 * NEW)
    assert stats.invalid_drafts >= 2 * stats.steps


@pytest.mark.parametrize("fallback", [fallbacks.Full(), fallbacks.NGram(1)], ids=["full", "n-gram"])
def test_a_draft_with_nan_after_one_token_continues_after_it(fallback):
    with pytest.warns(RuntimeWarning, match="at [0-9]+ of its tokens"):
        result = jaxspec.generate(mirror(table(), draft=broken(draft(), TOKEN), fallback=fallback), PROMPTS, NEW)
    assert result.tokens == text()
    assert 0 < result.stats.invalid_drafts < 3 * result.stats.steps
    assert result.stats.accepted > 0


def test_the_ratio_test_draws_from_the_target_after_a_draft_of_nan():
    logits, settings, positions = random_logits(VOCAB, 50, 3), asked(50, seed=np.arange(50)), positions_of(50, 4, 5, 6)
    rule = acceptance.ratio(4)
    bad = jnp.full((VOCAB, 50, 2), jnp.nan).at[:, ::2].set(jnp.inf)
    window, drafted = jax.jit(rule.propose)(bad, settings, positions[:, :2])
    assert np.all(window == INVALID)
    choices = jax.jit(rule.choose)(logits, window, drafted, settings, positions)
    noise = gumbel(settings.seed, positions, VOCAB, RESIDUAL)
    np.testing.assert_array_equal(choices, jnp.argmax(jax.nn.log_softmax(logits, axis=0) + noise, axis=0))


def test_an_exit_of_nan_changes_nothing():
    """Branches of the draft are still reused."""
    silent = lambda network, params, x: x * jnp.nan  # noqa: E731
    sound, spoilt = (mirror(table(), **options) for options in ({}, {"exit": jax.tree_util.Partial(silent)}))
    expected = jaxspec.generate(sound, PROMPTS, NEW)
    with pytest.warns(RuntimeWarning, match="the exit's logits were NaN or infinite in"):
        result = jaxspec.generate(spoilt, PROMPTS, NEW)
    assert result.tokens == expected.tokens == text()
    assert (result.stats.steps, result.stats.verified) == (expected.stats.steps, expected.stats.verified)
    assert result.stats.invalid_exits == result.stats.steps
    assert expected.stats.invalid_exits == expected.stats.invalid_drafts == 0
    assert 0 < result.stats.reused <= expected.stats.reused


def test_analysis_without_decoding_handles_nan_alike():
    """A draft of NaN is never accepted, an exit of NaN predicts nothing, and top tokens of NaN raise an error."""
    texts = np.asarray([prompt + row for prompt, row in zip(PROMPTS, text(), strict=True)][:1], np.int32)
    nothing = table()._replace(params={"table": jnp.full((VOCAB, VOCAB), jnp.nan)})
    data = federated.Continued(texts, len(PROMPTS[0]))
    assert federated.accepted_length(*table()[:2], data, 3) == 3.0
    assert federated.accepted_length(*nothing[:2], data, 3) == 0.0
    silent = jax.tree_util.Partial(lambda network, params, x: x * jnp.nan)
    (result,) = jaxspec.probe(table(), nothing, texts, 1, window=3, num_candidates=(1, 10), exit=silent)
    assert set(result.contained.values()) == set(result.foreseen.values()) == {0.0}
    with pytest.raises(FloatingPointError, match=r"NaN or infinity along texts \[0\]"):
        federated.top_tokens(nothing, texts, 2)


def test_every_filter_keeps_one_token():
    """The narrowest of every filter is the most likely token."""
    for narrow in ({"top_p": 1e-300}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 1e-6}):
        sampling = Sampling(**{"temperature": 1.0} | narrow)
        result = jaxspec.generate(jaxspec.autoregressive(table()), PROMPTS, 5, sampling=sampling)
        assert result.tokens == [row[:5] for row in text()]
