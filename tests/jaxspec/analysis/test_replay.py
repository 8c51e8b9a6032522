"""The replay against real runs of the policies: step by step where it is exact, else within sampling error."""

from functools import cache

import numpy as np
import pytest

import jaxspec
from jaxspec import zoo
from jaxspec.analysis import step_ends
from jaxspec.analysis.replay import Recording, SideMessages, hits, ready_length, record, steps
from jaxspec.cli.shared import prompts_of
from jaxspec.methods import candidates
from jaxspec.verify import Message
from tests.support.jaxspec import models, pairs, reading_rows

NEW, LONG, WINDOW, LAYER = 48, 96, 3, 2
PROMPTS = [prompt[:3] for prompt in pairs.PROMPTS]
EXACT = {
    "mirror": candidates.mirror(),
    "pearl": candidates.pearl(),
    "saguaro": candidates.saguaro(4, num_candidates=4),
}
BUDGETS = {
    "mirror": candidates.mirror(3),
    "hybrid": candidates.hybrid(2, 2, num_candidates=4),
}


def recorded(target, draft, prompts, new, layers, **options):
    """Record the target's own continuations."""
    written = jaxspec.generate(jaxspec.autoregressive(target), prompts, new).tokens
    texts = [[*prompt, *more] for prompt, more in zip(prompts, written, strict=True)]
    return record(target, draft, texts, [len(prompt) for prompt in prompts], layers, **options)


@cache
def of_the_tiny_pair():
    return recorded(models.target(), models.draft(), PROMPTS, NEW, (1, 2, 3, 4))


@pytest.fixture
def recording():
    """Shared by all tests."""
    return of_the_tiny_pair()


def decoded(policy, kappa, prompts=PROMPTS, **options):
    """Return (A, reused) of every step of a real run, one list per sequence."""
    method = models.mirror(WINDOW, kappa, LAYER, policy=policy, **options)
    state = method.init(models.request(prompts, NEW), 32 + NEW + 2 * (WINDOW + 1))
    runs = [[] for _ in prompts]
    while True:
        state, info = method.step(state)
        info = info.read()
        if not info.num_emitted.any():
            return runs
        for row, emitted in enumerate(info.num_emitted):
            if emitted:
                runs[row].append((int(info.num_accepted[row]), bool(info.reused[row])))


@pytest.mark.parametrize("name", EXACT)
def test_every_step_is_predicted(recording, name):
    """If positions do not compete for a budget, the replay predicts the reuse in every step of a real run."""
    check_every_step(recording, EXACT[name])


def test_every_step_of_a_draft_that_reads_hidden_states_is_predicted():
    """Where all that it reads is known at the exit, and a prompt has a token before its last."""
    draft, prompts = reading_rows.draft("eagle3 early"), [prompt for prompt in PROMPTS if len(prompt) > 1]
    recording = recorded(models.target(), draft, prompts, NEW, (1, LAYER), depths=2 * WINDOW + 1)
    assert recording.early == (LAYER,)
    assert sum(step.sum() for step in recording.agrees) > 0
    check_every_step(recording, EXACT["mirror"], prompts=prompts, draft=draft)
    with pytest.raises(ValueError, match="expected a window below 7, the depths of the recording, got 7"):
        steps(recording, 7)
    with pytest.raises(ValueError, match=r"expected a recording 9 tokens deep, got 7; pass depths="):
        ready_length(recording, steps(recording, 4))


def test_windows_from_the_draft_s_own_features():
    """By hand: behind a step's outcome, a window goes on along the row of the step's root."""
    agrees = np.zeros((6, 5), bool)
    agrees[0] = [True, False, True, True, False]  # A = 1; from column 2 on both are right
    agrees[2] = [False, True, False, False, False]  # A = 0; from column 1 on the first is right
    empty = SideMessages(Message(np.zeros((30, 1), np.int32), None, None), None)
    recording = Recording([agrees], np.arange(6), empty, {}, 5, ())
    found = steps(recording, 2)
    assert found.accepted.tolist() == [1, 0, 0]
    assert found.positions[:2].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert ready_length(recording, found) == pytest.approx((2 + 1 + 0) / 3)


def check_every_step(recording, policy, **options):
    replayed, real = steps(recording, WINDOW), decoded(policy, 2, **options)
    hit = hits(recording, replayed, policy, 2, LAYER)
    rows = np.asarray([row for row, _, _ in step_ends(recording.agrees, WINDOW)])
    for row, run in enumerate(real):
        own = rows == row
        predicted = list(zip(replayed.accepted[own].tolist(), hit[own].tolist(), strict=True))
        assert predicted == run[: len(predicted)]
        assert len(predicted) >= len(run) - WINDOW
    assert 0 < hit.mean() < 1


@pytest.mark.parametrize("name", BUDGETS)
def test_policies_with_budgets_are_predicted_within_sampling_error(recording, name):
    hit = hits(recording, steps(recording, WINDOW), BUDGETS[name], 4, LAYER)
    stats = jaxspec.generate(models.mirror(WINDOW, 4, LAYER, policy=BUDGETS[name]), PROMPTS, NEW).stats
    error = 3 * np.sqrt(max(hit.mean() * (1 - hit.mean()), 0.01) / stats.needed)
    assert stats.reuse_rate == pytest.approx(hit.mean(), abs=error)


def test_accepted_lengths_are_those_of_decoding(recording):
    for window in (1, 3):
        stats = jaxspec.generate(models.speculative(window), PROMPTS, NEW).stats
        replayed = steps(recording, window)
        assert replayed.accepted_length == pytest.approx(stats.accepted_length, rel=0.1)
        assert 0 < replayed.acceptance_rate < 1


def test_the_last_layer_always_hits(recording):
    assert hits(recording, steps(recording, WINDOW), candidates.mirror(), 1, 4).all()


def test_the_hit_rate_grows_with_candidates_and_branches(recording):
    replayed = steps(recording, WINDOW)
    share = lambda policy, kappa=4: hits(recording, replayed, policy, kappa, LAYER).mean()  # noqa: E731
    assert share(candidates.mirror(), 1) <= share(candidates.mirror(), 2) <= share(candidates.mirror(), 4)
    assert share(candidates.mirror(1)) <= share(candidates.mirror(4)) <= share(candidates.mirror())
    assert share(candidates.pearl()) <= share(candidates.saguaro(8, num_candidates=4))


def test_a_policy_without_rollouts_never_hits(recording):
    assert not hits(recording, steps(recording, WINDOW), candidates.none()).any()


def test_texts_of_unequal_lengths():
    """Every text is read as if it were the only one."""
    text = [5, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    both = record(models.target(), models.draft(), [text, text[:9]], [2, 4], (2,))
    first = record(models.target(), models.draft(), [text], [2], (2,))
    assert [len(row) for row in both.agrees] == [10, 5]
    np.testing.assert_array_equal(both.agrees[0], first.agrees[0])
    np.testing.assert_array_equal(both.agrees[1], first.agrees[0][2:7])
    np.testing.assert_array_equal(both.exits[2].unmasked.tokens[10:], first.exits[2].unmasked.tokens[2:7])


def test_bad_input(recording):
    pair = models.target(), models.draft()
    with pytest.raises(ValueError, match=r"expected text after every prompt, got none after \[1\]"):
        record(*pair, [[1, 2, 3], [1, 2]], [2, 2], (2,))
    with pytest.raises(ValueError, match=r"expected ascending layers from 1 to 4, got \(3, 2\)"):
        record(*pair, [[1, 2, 3]], [2], (3, 2))
    with pytest.raises(ValueError, match="expected more than 48 tokens after a prompt, got 48"):
        steps(recording, 48)
    with pytest.raises(ValueError, match="expected at most 8 candidates, as many as were recorded, got 9"):
        hits(recording, steps(recording, 3), candidates.mirror(), 9, 2)
    with pytest.raises(ValueError, match=r"expected an exit out of \(1, 2, 3, 4\), got None"):
        hits(recording, steps(recording, 3), candidates.mirror(), 4)


@cache
def of_the_embedded_pair():
    """Return the pair, prompts, and the recording of their continuations."""
    pair = zoo.load()
    prompts = prompts_of(pair.target.text, 8)
    return pair, prompts, recorded(pair.target, pair.draft, prompts, LONG, (pair.exit_layer,), exit=pair.exit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        candidates.mirror(),
        candidates.mirror(8),
        candidates.mirror(8, exit_weight=None),
        candidates.saguaro(8),
        candidates.hybrid(4, 4),
    ],
    ids=["all branches", "mirror", "exit alone", "saguaro", "hybrid"],
)
def test_the_embedded_pair_is_predicted(policy):
    pair, prompts, recording = of_the_embedded_pair()
    hit = hits(recording, steps(recording, 7), policy, 4, pair.exit_layer)
    method = jaxspec.mirror(
        pair.target, pair.draft, num_candidates=4, exit_layer=pair.exit_layer, exit=pair.exit, policy=policy
    )
    stats = jaxspec.generate(method, prompts, LONG).stats
    error = 3 * np.sqrt(hit.mean() * (1 - hit.mean()) / stats.needed)
    print(f"{policy}: predicted {hit.mean():.3f}, reused {stats.reuse_rate:.3f}")
    assert stats.reuse_rate == pytest.approx(hit.mean(), abs=error)


@pytest.mark.slow
def test_the_draft_knows_what_is_accepted():
    """Under a budget far more outcomes are among the exit's candidates if both messages rank them."""
    pair, _, recording = of_the_embedded_pair()
    found = steps(recording, 7)
    alone, both = (
        hits(recording, found, candidates.mirror(8, exit_weight=weight), 8, pair.exit_layer).mean()
        for weight in (None, 0.2)
    )
    print(f"ranked by the exit's message {alone:.3f}, by both {both:.3f}")
    assert both > alone + 0.05
