"""The message and its ranking against NumPy and brute force."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafts.base import Drafter
from jaxspec.drafts.ngram import NGramDrafter
from jaxspec.methods import candidates
from jaxspec.methods.draft_side import simplified
from jaxspec.verify.message import Message, exit_message, open_ended

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
    return exit_message(jnp.asarray(logits), jnp.asarray(drafted), num_candidates), law, drafted


def known_law(law, drafted, num_candidates, sharpness):
    """q ∝ (p^E)^β over what the message holds for each position: the best candidates and the drafted token."""
    q = np.zeros_like(law)
    for place, row in enumerate(law):
        own = [drafted[place]] if place < WINDOW else []
        others = [token for token in np.argsort(-row) if token not in own]
        held = [*own, *others[:num_candidates]]
        q[place, held] = row[held] ** sharpness
    return q / q.sum(axis=1, keepdims=True)


def outcomes(law, drafted):
    """P(exactly r tokens accepted, then v), by summing over everything that may be said in a row."""
    found = {}
    for said in product(range(VOCAB), repeat=WINDOW + 1):
        probability = np.prod([law[place, token] for place, token in enumerate(said)])
        accepted = next((r for r in range(WINDOW) if said[r] != drafted[r]), WINDOW)
        key = accepted, said[accepted]
        found[key] = found.get(key, 0.0) + probability
    assert sum(found.values()) == pytest.approx(1.0)
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


@pytest.mark.parametrize("budget", [1, 3, 8])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("num_candidates", [2, VOCAB - 1])
def test_ranking_is_the_probability_of_each_outcome(num_candidates, sharpness, budget):
    for seed in range(3):
        message, law, drafted = received(num_candidates, seed)
        roots = candidates.mirror(budget, sharpness).exit(message)
        for b in range(BATCH):
            chances = outcomes(known_law(law[b], drafted[b], num_candidates, sharpness), drafted[b])
            best = sorted(chances, key=chances.get, reverse=True)[:budget]
            assert list(zip(roots.accepted[b].tolist(), roots.tokens[b].tolist(), strict=True)) == best


def test_sharpness_matters():
    """A surer exit makes longer acceptance likelier."""
    message, _, _ = received(2)
    flat, sharp = (candidates.mirror(4, sharpness).exit(message).accepted[0].mean() for sharpness in (0.1, 5.0))
    assert flat < sharp


@pytest.mark.parametrize("budget", [None, 999])
def test_without_a_limit_all_candidates_are_rolled_out_once(budget):
    message, _, _ = received(2)
    roots = candidates.mirror(budget).exit(message)
    assert roots.accepted.shape == roots.tokens.shape == (BATCH, (WINDOW + 1) * 2)
    for b in range(BATCH):
        expected = {(r, int(v)) for r in range(WINDOW + 1) for v in message.tokens[b, r]}
        assert set(zip(roots.accepted[b].tolist(), roots.tokens[b].tolist(), strict=True)) == expected


def test_roots_that_are_known_are_not_ranked_again():
    message, _, _ = received(VOCAB - 1)
    rank = candidates.Likeliest(12)
    first, all_of_them = candidates.Likeliest(5)(message), rank(message)
    others = candidates.Likeliest(7)(message, first)
    for b in range(BATCH):
        parts = [list(zip(r.accepted[b].tolist(), r.tokens[b].tolist(), strict=True)) for r in (first, others)]
        assert [*parts[0], *parts[1]] == list(zip(*(a[b].tolist() for a in all_of_them), strict=True))


def test_merged_scores_are_those_of_both_sides():
    """log p_draft + w·log p_exit; a token that the draft does not list has at most its last one's score."""
    (sent, law, drafted), (logits, _, _) = received(3), exit_law(1)
    own = exit_message(jnp.asarray(logits), jnp.asarray(drafted), 2)
    of_draft = np.log(np.exp(np.moveaxis(logits, 0, -1)) / np.exp(np.moveaxis(logits, 0, -1)).sum(-1, keepdims=True))
    merged, unlisted = candidates.Merged(0.3)(sent, own), 0
    for b, place, k in product(range(BATCH), range(WINDOW + 1), range(3)):
        token, listed = int(sent.tokens[b, place, k]), own.tokens[b, place].tolist()
        unlisted += token not in listed
        draft = of_draft[b, place, token if token in listed else listed[-1]]
        assert merged.scores[b, place, k] == pytest.approx(draft + 0.3 * np.log(law[b, place, token]), abs=1e-4)
    assert unlisted > 0
    for b, place in product(range(BATCH), range(WINDOW)):
        both = of_draft[b, place, drafted[b, place]] + 0.3 * np.log(law[b, place, drafted[b, place]])
        assert merged.drafted[b, place] == pytest.approx(both, abs=1e-4)


def test_behind_the_window_the_exit_counts_alone_where_the_draft_has_no_candidates():
    (sent, _, _), (own, _, _) = received(2), received(2, 1)
    within = Message(*(part[:, :WINDOW] for part in own))
    sizes = jnp.asarray([WINDOW, WINDOW, 1, 2])
    merged = candidates.Merged(0.3, 0.7)(sent, open_ended(within, sizes))
    complete = candidates.Merged(0.3, 0.7)(sent, own)
    for b, size in enumerate(sizes.tolist()):
        np.testing.assert_allclose(merged.scores[b, :size], complete.scores[b, :size], rtol=1e-6)
        np.testing.assert_allclose(merged.scores[b, size], 0.7 * sent.scores[b, size], rtol=1e-6)
    np.testing.assert_array_equal(merged.drafted, complete.drafted)


def test_a_side_that_rules_tokens_out_does_not_decide_alone():
    """Filters of sampling leave a draft few tokens, an exit may lack the drafted one, numbers may be none."""
    (sent, _, _), (own, _, _) = received(3), received(3, 1)
    nothing = Message(own.tokens, jnp.full_like(own.scores, -jnp.inf), jnp.full_like(own.drafted, jnp.nan))
    merged = candidates.Merged(0.3)(sent, nothing)
    np.testing.assert_array_equal(np.argsort(-merged.scores, axis=-1), np.argsort(-sent.scores, axis=-1))
    assert np.isfinite(merged.scores).all()
    assert np.isfinite(merged.drafted).all()
    without = sent._replace(drafted=jnp.full_like(sent.drafted, -jnp.inf))
    assert np.isfinite(candidates.Merged(0.3)(without, own).drafted).all()
    impossible = own._replace(drafted=jnp.full_like(own.drafted, -jnp.inf))
    assert np.isneginf(candidates.Merged(0.3)(without, impossible).drafted).all()


def test_nothing_is_merged_that_changes_nothing():
    """All candidates are rolled out, or the draft knows no chances."""
    model, lookup = Drafter(), NGramDrafter((2,))
    few, every = candidates.mirror(5), candidates.mirror((WINDOW + 1) * 2)
    assert simplified(few, model, WINDOW, 2) == few
    assert simplified(every, model, WINDOW, 2).merge is None
    assert simplified(few, lookup, WINDOW, 2).merge is None
    assert simplified(candidates.hybrid(2, 8), model, WINDOW, 2).merge is not None


def test_a_hybrid_of_one_side_is_that_side():
    assert candidates.hybrid(6, 0) == candidates.ahead(6)
    assert candidates.hybrid(0, 6) == candidates.mirror(6)
    assert candidates.hybrid(2, 6).exit == candidates.mirror(6).exit


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: candidates.hybrid(0, 0), "expected ahead or budget >= 1"),
        (lambda: candidates.Merged(0.0), r"expected finite weights > 0, got Merged\(weight=0.0"),
        (lambda: candidates.Policy(merge=candidates.Merged()), "expected a ranking of the exit's message with merge"),
    ],
)
def test_policies_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("budget", [1, 4, 8, 13])
@pytest.mark.parametrize("rate", [0.5, 0.8, 1.0])
def test_geometric_fan_out(rate, budget):
    """Whole numbers nearest to the optimum F_r ∝ a^(r/(1+e)), the last one over (1 − a)^(1/(1+e)), none above κ."""
    counts = candidates.Geometric(budget, rate, 0.5).fan_out(WINDOW, 8)
    assert counts.sum() == budget
    share = rate ** (np.arange(WINDOW + 1) / 1.5)
    share[-1] /= max(1 - rate, 1e-12) ** (1 / 1.5)
    if share.max() / share.sum() * budget < 8:
        assert np.all(np.abs(counts - budget * share / share.sum()) < 1)
    assert np.all(np.diff(counts[:-1]) <= 0)
    assert counts.max() <= 8


def test_geometric_roots_are_the_best_candidates_of_each_position():
    message, _, _ = received(3)
    roots = candidates.Geometric(6)(message)
    counts = candidates.Geometric(6).fan_out(WINDOW, 3)
    for b in range(BATCH):
        expected = [(r, int(v)) for r in range(WINDOW + 1) for v in message.tokens[b, r, : counts[r]]]
        assert list(zip(roots.accepted[b].tolist(), roots.tokens[b].tolist(), strict=True)) == expected


def test_pearl_bets_on_the_whole_window():
    message, _, _ = received(1)
    roots = candidates.pearl().ahead(message)
    assert np.all(roots.accepted == WINDOW)
    np.testing.assert_array_equal(roots.tokens, message.tokens[:, -1])


@pytest.mark.parametrize("budget", [0, -1])
def test_budget_below_one(budget):
    with pytest.raises(ValueError, match=rf"expected 1 <= budget .*got {budget}; without a limit pass None"):
        candidates.mirror(budget)


@pytest.mark.parametrize("settings", [{"acceptance_rate": 0.0}, {"acceptance_rate": 1.1}, {"exponent": 0.0}])
def test_a_fan_out_that_cannot_be(settings):
    with pytest.raises(ValueError, match=r"expected 0 < acceptance_rate <= 1 and exponent > 0, got"):
        candidates.saguaro(**settings)


@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("nan"), float("inf")])
def test_sharpness_that_is_not_positive(sharpness):
    with pytest.raises(ValueError, match=rf"expected a finite sharpness > 0, got {sharpness}"):
        candidates.mirror(3, sharpness)
