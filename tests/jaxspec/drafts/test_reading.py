"""Drafts that read hidden states: plain decoding's tokens, and rows made of the target's own features."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import zoo
from jaxspec.drafts import trees
from jaxspec.models.attention import causal
from jaxspec.text.tokenizer import encode
from jaxspec.training import hidden_states
from jaxspec.verify import Features
from tests.support.jaxspec import models, pairs, policies
from tests.support.jaxspec import reading_rows as rows


# The first rows hold most pairs of settings; all of the product is in `make matrix`.
@pytest.mark.parametrize("row", policies.covering(rows.ROWS)[:16], ids=str)
def test_tokens_are_those_of_plain_decoding(row):
    found, expected = rows.tokens_of(*row)
    assert found == expected


def true_rows(made, model, text):
    """Keys and values of one pass over the pairs of a whole text, with the target's features."""
    network, tokens = made.drafter.network, jnp.asarray([text])
    reads = network.reads
    *early, last = hidden_states(model.network, model.params, tokens, tuple(tap for tap in reads.taps if tap))
    streams = {0: model.network.embed(model.params, tokens)} | dict(
        zip([tap for tap in reads.taps if tap], early, strict=True)
    )
    final = jnp.moveaxis(model.network.final(model.params, last), 0, -1) if reads.final else None
    features = Features(tuple(jnp.moveaxis(streams[tap], 0, -1) for tap in reads.taps), final)
    inputs = jnp.moveaxis(network.fuse(made.drafter.fusion(made.params), features), -1, 0)[:, :, :-1]
    kept = []

    def attend(queries, keys, values, past, scores):
        kept.append((keys, values))
        return causal()(queries, keys, values, past, scores)

    at = jnp.arange(len(text) - 1)[None]
    network.run(made.params, inputs, tokens[:, 1:], at, (None,) * network.config.num_layers, attend, 0)
    return kept


PAIR = cache(zoo.load)
WAYS = [("eagle3 early", way) for way in ("chain", "static", "dynamic", "mirror", "hybrid")]
WAYS += [("eagle3", "mirror"), ("eagle3", "saguaro"), ("eagle", "dynamic"), ("hydra++", "mirror")]


def check_rows(state, way, true, tolerance):
    """Rows of all committed pairs equal the true ones; the last pairs may wait for the next pass."""
    drafting = state.draft if way in ("chain", *rows.TREES) else state.draft.drafter
    for sequence, waiting in enumerate(np.asarray(drafting.recent.row).tolist()):
        for found, expected in zip(drafting.cache, true[sequence], strict=True):
            for one, other in zip(found, expected, strict=True):
                count = max(0, waiting)
                np.testing.assert_allclose(one[sequence, :, :count], other[0, :, :count], atol=tolerance)


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_rows_are_those_of_a_pass_over_the_committed_text(kind, way):
    method, prompts = rows.method(kind, way, "grouped"), pairs.PROMPTS[:3]
    texts = [prompt + new for prompt, new in zip(prompts, rows.expected("grouped", 3, "greedy", 14), strict=True)]
    true = [true_rows(rows.draft(kind), rows.target("grouped"), text) for text in texts]
    state = method.init(models.request(prompts), 64)
    for _ in range(4):
        state, _ = method.step(state)
        check_rows(state, way, true, 2e-3)
    assert np.asarray(state.target.progress.position).max() > 8


@pytest.mark.parametrize(
    ("kind", "way"),
    [("eagle3", way) for way in ("chain", "static", "dynamic", "mirror", "saguaro", "hybrid")]
    + [("eagle", "chain"), ("eagle", "mirror")],
)
def test_rows_after_windows_that_are_accepted_as_a_whole(kind, way):
    """With a trained draft most windows are; the pair of the root then is not among those of the next window."""
    made, target = PAIR().drafts[kind], PAIR().target
    prompt = encode(PAIR().tokenizer, "KING HENRY:\nOnce more").tolist()
    new = jaxspec.generate(jaxspec.autoregressive(target), [prompt], 40).tokens[0]
    true = [true_rows(made, target, prompt + new)]
    if way in policies.POLICIES:
        method = models.mirror(2, 4, PAIR().exit_layer, target=target, draft=made, policy=policies.POLICIES[way](4))
    else:
        tree = {"static": trees.static((2, 1)), "dynamic": trees.dynamic(2, 2, 4)}.get(way)
        method = jaxspec.speculative(target, made, 2, tree=tree)
    state, whole = method.init(models.request([prompt], 24), 96), 0
    for _ in range(8):
        state, info = method.step(state)
        whole += int(info.num_verified[0]) == 2
        check_rows(state, way, true, 2e-2)
    assert whole > 2


def test_early_features_make_mirror_decoding_accept_what_speculative_decoding_does():
    for mode in ("greedy", "warm"):
        ways = [rows.decode(rows.method("eagle3 early", way, "grouped"), 3, mode) for way in ("chain", "mirror")]
        assert ways[0].stats.accepted == ways[1].stats.accepted


def test_a_draft_of_another_target_is_refused():
    wide = models.random_model(models.DRAFT.__class__(models.VOCAB, 8, 1, 2, 1, 4, 8), 7)
    with pytest.raises(ValueError, match="expected a target of width 16 and 11 tokens"):
        jaxspec.speculative(wide, rows.draft("eagle"))


def test_a_window_beyond_the_heads_is_refused():
    with pytest.raises(ValueError, match="4 heads"):
        jaxspec.speculative(rows.target("grouped"), rows.draft("medusa"), 5)
    with pytest.raises(ValueError, match="4 heads"):
        jaxspec.speculative(rows.target("grouped"), rows.draft("hydra"), tree=trees.chain(5))


def test_a_fallback_that_looks_tokens_up_is_refused():
    with pytest.raises(ValueError, match="run tokens that were looked up"):
        models.mirror(draft=rows.draft("eagle"), fallback=jaxspec.fallbacks.NGram(2))
