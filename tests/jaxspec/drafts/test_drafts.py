"""Rollouts: every branch is plain greedy decoding of the draft from its own text, at the promised cost."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafts import Pending, Proposer
from jaxspec.drafts._branches import Scratch, take
from jaxspec.drafts.beginning import first_window
from jaxspec.drafts.plain import PlainState
from jaxspec.drafts.records import as_window
from jaxspec.models.attention import cached, init_cache
from jaxspec.models.config import Attention
from jaxspec.verify.acceptance import match
from tests.support.jaxspec import models

WINDOW, CAPACITY = 3, 64
#: Roots (accepted tokens r of the window, next token v), for both sequences alike; all positions and several tokens.
ROOTS = [(0, 4), (1, 0), (1, 9), (2, 7), (3, 2), (3, 10)]
WINDOWED = replace(models.TARGET, num_layers=2, attention=Attention(window=4, windowed=(False, True)))
DRAFTS = {
    "one layer": models.draft,
    "four layers": models.target,
    "sliding window": lambda: models.random_model(WINDOWED, 3),
    "streams": models.streaming,
    "one stream of four layers": lambda: models.streaming(1, models.target),
    "streams with a sliding window": lambda: models.streaming(2, lambda: models.random_model(WINDOWED, 3)),
}
SLOW = "sliding window", "one stream of four layers", "streams with a sliding window"


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in DRAFTS], scope="module"
)
def draft(request):
    return DRAFTS[request.param]()


def first(draft, prompts=models.PROMPTS):
    """The prompts' lengths, and the first window's tokens with the draft's rows."""
    request = models.request(prompts)
    fixed = models.drafter(draft), match(), draft.params
    window, _, state = first_window(*fixed, request, None, WINDOW, CAPACITY - WINDOW)
    return jnp.asarray(request.lengths), window.tokens, state.cache


def roll(draft, cache, roots, pending):
    """Greedy branches, and the cache with their rows."""
    return _roll(models.drafter(draft), draft.params, cache, roots, pending)


@partial(jax.jit, static_argnums=0)
def _roll(drafter, params, cache, roots, pending):
    return drafter.roll(params, cache, roots, WINDOW, Proposer(match(), None), pending)


def roots_of(lengths, roots=ROOTS):
    accepted, tokens = (jnp.asarray([row] * len(lengths), jnp.int32) for row in zip(*roots, strict=True))
    return Pending(tokens, lengths[:, None] + accepted)


def pending_of(lengths, window):
    return Pending(window[:, -1], lengths + WINDOW - 1)


def continued(draft, text):
    return models.greedy_text(draft, text, WINDOW)


def text_of(window, index, root):
    """The text of a branch up to its root."""
    return [*models.PROMPTS[index], *window[index, : root[0]].tolist(), root[1]]


def rows_of(draft, text):
    """Cache rows of a text by one pass over it: per layer keys and values [G, T, head_size]."""
    cache = _rows(*draft[:2], jnp.asarray([[*text, *[0] * (16 - len(text))]], jnp.int32))
    return jax.tree.map(lambda rows: rows[0, :, : len(text)], cache)


@partial(jax.jit, static_argnums=0)
def _rows(network, params, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    cache, layers = init_cache(network.config, 1, CAPACITY), range(network.config.num_layers)
    return network.blocks(params, network.embed(params, tokens), positions, cache, cached(positions), layers)[1]


def test_the_first_window_is_greedy_text(draft):
    _, window, _ = first(draft)
    assert window.tolist() == [continued(draft, prompt) for prompt in models.PROMPTS]


def test_every_branch_is_greedy_text_from_its_root(draft):
    lengths, window, cache = first(draft)
    rolled, _ = roll(draft, cache, roots_of(lengths), pending_of(lengths, window))
    for index in range(len(models.PROMPTS)):
        expected = [continued(draft, text_of(window, index, root)) for root in ROOTS]
        assert rolled.tokens[index].tolist() == expected


def test_branches_of_different_positions_in_one_batch(draft):
    """Each sequence has roots of its own."""
    lengths, window, cache = first(draft)
    roots = [[(0, 1), (3, 5)], [(2, 8), (1, 3)]]
    accepted, tokens = (jnp.asarray([[r[i] for r in row] for row in roots], jnp.int32) for i in (0, 1))
    at = Pending(tokens, lengths[:, None] + accepted)
    rolled, _ = roll(draft, cache, at, pending_of(lengths, window))
    for index, row in enumerate(roots):
        assert rolled.tokens[index].tolist() == [continued(draft, text_of(window, index, root)) for root in row]


def test_the_pending_token_gets_its_row(draft):
    lengths, window, cache = first(draft)
    _, cache = roll(draft, cache, roots_of(lengths), pending_of(lengths, window))
    for index, prompt in enumerate(models.PROMPTS):
        expected = rows_of(draft, [*prompt, *window[index].tolist()])
        size = len(prompt) + WINDOW
        found = jax.tree.map(lambda rows, i=index, n=size: rows[i, :, :n], cache)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found, expected)


def test_a_rollout_leaves_the_shared_rows_alone(draft):
    """Beside the pending row and the scratch nothing of the cache changes, whatever the branches say."""
    lengths, window, cache = first(draft)
    _, after = roll(draft, cache, roots_of(lengths), pending_of(lengths, window))
    start, end = Scratch(len(ROOTS), WINDOW, CAPACITY).start, CAPACITY - 1
    for before_rows, rows in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        changed = np.argwhere(np.any(np.asarray(before_rows != rows), axis=(1, 3))).tolist()
        shared = [place for place in changed if not start <= place[1] < end]
        assert shared == [[index, int(size) + WINDOW - 1] for index, size in enumerate(lengths)]


def test_a_committed_branch_is_the_text_from_which_the_next_one_goes_on(draft):
    """Two steps in a row; the sequences take other branches, one of them after a partial acceptance."""
    lengths, window, cache = first(draft)
    rolled, cache = roll(draft, cache, roots_of(lengths), pending_of(lengths, window))
    branch = [2, 4]
    positions = lengths + jnp.asarray([ROOTS[b][0] for b in branch])
    taken = take(rolled, cache, jnp.asarray(branch))
    (second, _), _ = as_window(taken)
    cache = models.drafter(draft).commit(PlainState(cache), taken, positions).cache
    texts = [text_of(window, index, ROOTS[b]) for index, b in enumerate(branch)]
    assert second.tolist() == [continued(draft, text) for text in texts]
    roots = [(2, 6), (3, 1)]
    at = roots_of(positions + 1, roots)
    rolled, _ = roll(draft, cache, at, Pending(second[:, -1], positions + WINDOW))
    for index, text in enumerate(texts):
        expected = [continued(draft, [*text, *second[index, :r].tolist(), v]) for r, v in roots]
        assert rolled.tokens[index].tolist() == expected


def test_take_picks_a_branch_for_each_sequence(draft):
    """Its tokens, and the rows that one pass over its text would have left."""
    lengths, window, cache = first(draft)
    rolled, cache = roll(draft, cache, roots_of(lengths), pending_of(lengths, window))
    branch = [5, 0]
    taken = take(rolled, cache, jnp.asarray(branch))
    for index, b in enumerate(branch):
        np.testing.assert_array_equal(taken.tokens[index], rolled.tokens[index, b])
        text = [*text_of(window, index, ROOTS[b]), *taken.tokens[index, :-1].tolist()]
        expected = jax.tree.map(lambda rows: rows[:, -WINDOW:], rows_of(draft, text))
        found = jax.tree.map(lambda rows, i=index: rows[i], taken.rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found, expected)


@pytest.mark.parametrize("size", [2, 20])
@pytest.mark.parametrize("with_pending", [True, False])
def test_tokens_processed_do_not_grow_with_the_prefix(size, with_pending):
    """R·γ + 1 for each sequence, the one being the pending token."""
    draft, counted = models.draft(), []

    def embed(params, tokens):
        counted.append(tokens.size)
        return draft.network.embed(params, tokens)

    prompts = [(list(range(10)) * 2)[:size], [3] * size]
    lengths, window, cache = first(draft, prompts)
    pending = pending_of(lengths, window) if with_pending else None
    roots = roots_of(lengths) if with_pending else roots_of(lengths, [(0, 4)] * len(ROOTS))
    with jax.disable_jit():
        proposer = Proposer(match(), None)
        drafter = models.drafter(draft._replace(network=replace(draft.network, embed=embed)))
        counted.clear()  # the shape of an embedding has been looked at
        drafter.roll(draft.params, cache, roots, WINDOW, proposer, pending)
    assert sum(counted) == len(prompts) * (len(ROOTS) * WINDOW + with_pending)
