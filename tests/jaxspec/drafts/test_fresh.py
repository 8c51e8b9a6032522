"""Fresh drafts for a target: what they share with it, and what they refuse."""

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.drafts import draft_for
from jaxspec.drafts.fresh import KINDS, frequent_tokens, init_draft
from tests.support.jaxspec import models

TAPS = {"taps": (1, 2, 3)}


def made(kind, **options):
    return init_draft(kind, models.target(), **(TAPS if kind == "eagle3" else {}) | options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_is_the_targets_own_array(kind):
    draft = made(kind)
    assert "embedding" not in draft.params or draft.params["embedding"] is models.target().params["embedding"]
    shapes = jax.eval_shape(lambda: draft.drafter.network.init(jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, draft.params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("early", [False, True])
def test_a_fresh_draft_decodes_losslessly(kind, early):
    target = models.target()
    draft = made(kind, taps=(1,)) if early else made(kind)
    plain = jaxspec.generate(jaxspec.autoregressive(target), models.PROMPTS, models.NEW_TOKENS)
    drafted = jaxspec.generate(jaxspec.speculative(target, draft, window=3), models.PROMPTS, models.NEW_TOKENS)
    assert drafted.tokens == plain.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_whose_taps_lie_below_the_exit_runs_under_mirror(kind):
    target = models.target()
    draft = made(kind, taps=(1, 2) if kind == "eagle3" else (2,))
    plain = jaxspec.generate(jaxspec.autoregressive(target), models.PROMPTS, models.NEW_TOKENS)
    mirrored = jaxspec.generate(
        jaxspec.mirror(target, draft, window=3, exit_layer=2), models.PROMPTS, models.NEW_TOKENS
    )
    assert mirrored.tokens == plain.tokens


def test_medusa_starts_as_the_targets_head():
    target, draft = models.target(), made("medusa", heads=2)
    f = jax.random.normal(jax.random.key(0), (16, 1, 3))
    expected = np.einsum("vd,dbt->vbt", target.params["embedding"], f)
    for head in range(2):
        np.testing.assert_allclose(draft.drafter.network.logits(draft.params, f, head), expected, rtol=1e-5)


def test_eagle3_drafts_its_vocabulary_with_the_targets_rows():
    draft = made("eagle3", vocabulary=[7, 2, 5])
    np.testing.assert_array_equal(draft.params["head"], models.target().params["embedding"][np.asarray([2, 5, 7])])
    logits = draft.drafter.network.logits(draft.params, jax.random.normal(jax.random.key(0), (16, 1, 1)), 0)
    assert np.flatnonzero(np.isfinite(logits[:, 0, 0])).tolist() == [2, 5, 7]
    assert draft_for(models.target(), draft).drafter.reads.taps == (1, 2, 3)


def test_frequent_tokens_are_in_ascending_order_and_ignore_padding():
    tokens = np.asarray([[5, 5, 1, -1], [5, 9, 9, 1], [1, 1, 0, -1]])
    np.testing.assert_array_equal(frequent_tokens(tokens, 3, 11), [1, 5, 9])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("eagle4", {}, "expected a kind out of eagle3, .*got 'eagle4'"),
        ("eagle3", {"taps": None}, "at least 7 layers .*got 4; pass taps="),
        ("eagle3", {"taps": (1, 2, 5)}, "ascending taps from 0 to 4"),
        ("eagle3", {"taps": (2, 1)}, "ascending taps"),
        ("eagle3", {"taps": ()}, "expected taps for eagle3"),
        ("medusa", {"taps": (1, 2)}, "expected one tap for medusa"),
        ("medusa", {"heads": 0}, "expected heads >= 1, got 0"),
        ("eagle3", {"vocabulary": [1, 1]}, "got 2 ids, 1 of them different"),
        ("eagle3", {"vocabulary": [models.VOCAB]}, "from 0 to 10"),
        ("eagle3", {"vocabulary": []}, "got 0 ids"),
    ],
)
def test_what_does_not_fit_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        made(kind, **options)
