"""The message and its ranking against NumPy and brute force."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import candidates

VOCAB, WINDOW, BATCH = 5, 3, 4


def exit_law(seed=0):
    """Exit logits [V, B, γ+1], the law as [B, γ+1, V], and windows that hold likely and unlikely tokens."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(VOCAB, BATCH, WINDOW + 1)).astype(np.float32)
    odds = np.exp(np.moveaxis(logits, 0, -1).astype(float))
    drafted = np.argmax(logits[:, :, :-1], axis=0)
    drafted[1:] = random.integers(VOCAB, size=(BATCH - 1, WINDOW))
    return logits, odds / odds.sum(-1, keepdims=True), drafted.astype(np.int32)


def received(num_candidates, seed=0):
    logits, law, drafted = exit_law(seed)
    return candidates.message(jnp.asarray(logits), jnp.asarray(drafted), num_candidates), law, drafted


def outcomes(law, drafted):
    """P(exactly r tokens accepted, then v), by summing over everything that the exit could say in a row."""
    found = {}
    for said in product(range(VOCAB), repeat=WINDOW + 1):
        probability = np.prod([law[place, token] for place, token in enumerate(said)])
        accepted = next((r for r in range(WINDOW) if said[r] != drafted[r]), WINDOW)
        key = accepted, said[accepted]
        found[key] = found.get(key, 0.0) + probability
    return found


@pytest.mark.parametrize("num_candidates", [1, 2, VOCAB - 1])
def test_message_holds_the_most_likely_tokens_that_were_not_drafted(num_candidates):
    message, law, drafted = received(num_candidates)
    for b, place in product(range(BATCH), range(WINDOW + 1)):
        ranked = np.argsort(-law[b, place]).tolist()
        if place < WINDOW:
            ranked.remove(drafted[b, place])
        assert message.tokens[b, place].tolist() == ranked[:num_candidates]
        np.testing.assert_allclose(
            message.scores[b, place], np.log(law[b, place, ranked[:num_candidates]]), rtol=1e-4, atol=1e-5
        )


def test_message_holds_the_drafted_tokens_chances():
    message, law, drafted = received(2)
    expected = np.log(np.take_along_axis(law[:, :-1], drafted[:, :, None], axis=2)[:, :, 0])
    np.testing.assert_allclose(message.drafted, expected, rtol=1e-4, atol=1e-5)


def test_the_bonus_position_may_repeat_any_token():
    """Behind the whole window nothing was drafted, so nothing is left out there."""
    message, law, _ = received(VOCAB - 1)
    left_out = [set(range(VOCAB)) - set(row.tolist()) for row in np.asarray(message.tokens[:, -1])]
    assert left_out == [{int(np.argmin(row))} for row in law[:, -1]]


@pytest.mark.parametrize("budget", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranking_is_the_probability_of_each_outcome(budget, seed):
    """With κ ≥ budget no better outcome can be missing from the message."""
    message, law, drafted = received(VOCAB - 1, seed)
    roots = candidates.mirror(budget)(message)
    for b in range(BATCH):
        chances = outcomes(law[b], drafted[b])
        best = sorted(chances, key=chances.get, reverse=True)[:budget]
        assert list(zip(roots.accepted[b].tolist(), roots.tokens[b].tolist(), strict=True)) == best


@pytest.mark.parametrize("budget", [None, 999])
def test_without_a_limit_all_candidates_are_rolled_out_once(budget):
    message, _, _ = received(2)
    roots = candidates.mirror(budget)(message)
    assert roots.accepted.shape == roots.tokens.shape == (BATCH, (WINDOW + 1) * 2)
    for b in range(BATCH):
        expected = {(r, int(v)) for r in range(WINDOW + 1) for v in message.tokens[b, r]}
        assert set(zip(roots.accepted[b].tolist(), roots.tokens[b].tolist(), strict=True)) == expected


@pytest.mark.parametrize("budget", [0, -1])
def test_budget_below_one(budget):
    with pytest.raises(ValueError, match=rf"expected a branch budget >= 1, got {budget}"):
        candidates.mirror(budget)
