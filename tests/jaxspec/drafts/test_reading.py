"""Drafts that read hidden states: plain decoding's tokens, and rows made of the target's own features."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.models.attention import causal
from jaxspec.training import hidden_states
from jaxspec.verify import Features
from tests.support.jaxspec import models, pairs, policies
from tests.support.jaxspec import reading_rows as rows


# The first rows hold most pairs of settings; all of the product is in `make matrix`.
@pytest.mark.parametrize("row", policies.covering(rows.ROWS)[:16], ids=str)
def test_tokens_are_those_of_plain_decoding(row):
    found, expected = rows.tokens_of(*row)
    assert found == expected


def true_rows(kind, text):
    """Keys and values of one pass over the pairs of a whole text, with the target's features."""
    made, model = rows.draft(kind), rows.target("grouped")
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


WAYS = [("eagle3 early", way) for way in ("chain", "static", "dynamic", "mirror", "hybrid")]
WAYS += [("eagle3", "mirror"), ("eagle3", "saguaro"), ("eagle", "dynamic"), ("hydra++", "mirror")]


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_rows_are_those_of_a_pass_over_the_committed_text(kind, way):
    method, prompts = rows.method(kind, way, "grouped"), pairs.PROMPTS[:3]
    texts = [prompt + new for prompt, new in zip(prompts, rows.expected("grouped", 3, "greedy", 14), strict=True)]
    true = [true_rows(kind, text) for text in texts]
    state = method.init(models.request(prompts), 64)
    for _ in range(4):
        state, _ = method.step(state)
        drafting = state.draft if way in ("chain", *rows.TREES) else state.draft.drafter
        position = np.asarray(state.target.progress.position)
        # The last pairs may wait for the next pass: those of the last window, and that of the newest token.
        waiting = np.asarray(drafting.recent.row)
        for sequence in range(3):
            count = max(0, int(waiting[sequence]))
            for found, expected in zip(drafting.cache, true[sequence], strict=True):
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one[sequence, :, :count], other[0, :, :count], atol=2e-3)
    assert position.max() > 8


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
        jaxspec.speculative(rows.target("grouped"), rows.draft("hydra"), tree=jaxspec.drafts.trees.chain(5))


def test_a_fallback_that_looks_tokens_up_is_refused():
    with pytest.raises(ValueError, match="run tokens that were looked up"):
        models.mirror(draft=rows.draft("eagle"), fallback=jaxspec.fallbacks.NGram(2))
