"""The replay against reality: what decoding with a policy then reuses, step by step where nothing is approximated."""

from functools import cache

import numpy as np
import pytest

import jaxspec
from jaxspec import zoo
from jaxspec.analysis._probe import step_ends
from jaxspec.analysis.foresight import foresee, foreseen, steps
from jaxspec.cli.shared import prompts_of
from jaxspec.methods import candidates
from tests.support.jaxspec import models, pairs

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


def replayed(target, draft, prompts, new, layers, **options):
    """Foresight on the target's own text."""
    written = jaxspec.generate(jaxspec.autoregressive(target), prompts, new).tokens
    texts = [[*prompt, *more] for prompt, more in zip(prompts, written, strict=True)]
    return foresee(target, draft, texts, [len(prompt) for prompt in prompts], layers, **options)


@cache
def of_the_tiny_pair():
    return replayed(models.target(), models.draft(), PROMPTS, NEW, (1, 2, 3, 4))


@pytest.fixture
def foresight():
    """Made once for all tests."""
    return of_the_tiny_pair()


def decoded(policy, kappa):
    """(A, reused) of every step of a real run, a list for each sequence."""
    method = models.mirror(WINDOW, kappa, LAYER, policy=policy)
    state = method.init(models.request(PROMPTS, NEW), 32 + NEW + 2 * (WINDOW + 1))
    found = [[] for _ in PROMPTS]
    while True:
        state, info = method.step(state)
        info = info.read()
        if not info.num_emitted.any():
            return found
        for row, emitted in enumerate(info.num_emitted):
            if emitted:
                found[row].append((int(info.num_accepted[row]), bool(info.reused[row])))


@pytest.mark.parametrize("name", EXACT)
def test_every_step_is_foretold(foresight, name):
    """Without a budget for which places compete, the replay knows what every step of a real run reuses."""
    found, real = steps(foresight, WINDOW), decoded(EXACT[name], 2)
    hits = foreseen(foresight, found, EXACT[name], 2, LAYER)
    rows = np.asarray([row for row, _, _ in step_ends(foresight.agrees, WINDOW)])
    for row, run in enumerate(real):
        mine = rows == row
        told = list(zip(found.accepted[mine].tolist(), hits[mine].tolist(), strict=True))
        assert told == run[: len(told)]
        assert len(told) >= len(run) - WINDOW
    assert 0 < hits.mean() < 1


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_are_foretold_within_sampling_error(foresight, name):
    hits = foreseen(foresight, steps(foresight, WINDOW), BUDGETS[name], 4, LAYER)
    stats = jaxspec.generate(models.mirror(WINDOW, 4, LAYER, policy=BUDGETS[name]), PROMPTS, NEW).stats
    error = 3 * np.sqrt(max(hits.mean() * (1 - hits.mean()), 0.01) / stats.needed)
    assert stats.reuse_rate == pytest.approx(hits.mean(), abs=error)


def test_accepted_lengths_are_those_of_decoding(foresight):
    for window in (1, 3):
        stats = jaxspec.generate(models.speculative(window), PROMPTS, NEW).stats
        found = steps(foresight, window)
        assert found.accepted_length == pytest.approx(stats.accepted_length, rel=0.1)
        assert 0 < found.acceptance_rate < 1


def test_the_oracle_foresees_everything(foresight):
    found = steps(foresight, WINDOW)
    assert foreseen(foresight, found, candidates.mirror(), 1, 4).all()


def test_more_is_foreseen_with_more(foresight):
    """Candidates, branches, and a second source of them."""
    found = steps(foresight, WINDOW)
    share = lambda policy, kappa=4: foreseen(foresight, found, policy, kappa, LAYER).mean()  # noqa: E731
    assert share(candidates.mirror(), 1) <= share(candidates.mirror(), 2) <= share(candidates.mirror(), 4)
    assert share(candidates.mirror(1)) <= share(candidates.mirror(4)) <= share(candidates.mirror())
    assert share(candidates.pearl()) <= share(candidates.saguaro(8, num_candidates=4))


def test_nothing_is_foreseen_without_a_policy(foresight):
    assert not foreseen(foresight, steps(foresight, WINDOW), candidates.none()).any()


def test_texts_of_unequal_lengths(foresight):
    """Every text is read as if it were alone."""
    text = [5, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    both = foresee(models.target(), models.draft(), [text, text[:9]], [2, 4], (2,))
    first = foresee(models.target(), models.draft(), [text], [2], (2,))
    assert [len(row) for row in both.agrees] == [10, 5]
    np.testing.assert_array_equal(both.agrees[0], first.agrees[0])
    np.testing.assert_array_equal(both.agrees[1], first.agrees[0][2:7])
    np.testing.assert_array_equal(both.exits[2].free.tokens[10:], first.exits[2].free.tokens[2:7])


def test_bad_input(foresight):
    pair = models.target(), models.draft()
    with pytest.raises(ValueError, match=r"expected text behind every prompt, got none behind \[1\]"):
        foresee(*pair, [[1, 2, 3], [1, 2]], [2, 2], (2,))
    with pytest.raises(ValueError, match=r"expected ascending layers from 1 to 4, got \(3, 2\)"):
        foresee(*pair, [[1, 2, 3]], [2], (3, 2))
    with pytest.raises(ValueError, match="expected more than 48 tokens behind a prompt, got 48"):
        steps(foresight, 48)
    with pytest.raises(ValueError, match="expected at most 8 candidates, those that foresee was asked for, got 9"):
        foreseen(foresight, steps(foresight, 3), candidates.mirror(), 9, 2)
    with pytest.raises(ValueError, match=r"expected an exit out of \(1, 2, 3, 4\), got None"):
        foreseen(foresight, steps(foresight, 3), candidates.mirror(), 4)


@cache
def of_the_embedded_pair():
    """Prompts, and what is foreseen behind them."""
    pair = zoo.load()
    prompts = prompts_of(pair.target.text, 8)
    return pair, prompts, replayed(pair.target, pair.draft, prompts, LONG, (pair.exit_layer,), exit=pair.exit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [candidates.mirror(), candidates.mirror(8), candidates.saguaro(8), candidates.hybrid(4, 4)],
    ids=["all branches", "mirror", "saguaro", "hybrid"],
)
def test_the_embedded_pair_is_foretold(policy):
    pair, prompts, foresight = of_the_embedded_pair()
    hits = foreseen(foresight, steps(foresight, 7), policy, 4, pair.exit_layer)
    method = jaxspec.mirror(
        pair.target, pair.draft, num_candidates=4, exit_layer=pair.exit_layer, exit=pair.exit, policy=policy
    )
    stats = jaxspec.generate(method, prompts, LONG).stats
    error = 3 * np.sqrt(hits.mean() * (1 - hits.mean()) / stats.needed)
    print(f"{policy}: foretold {hits.mean():.3f}, reused {stats.reuse_rate:.3f}")
    assert stats.reuse_rate == pytest.approx(hits.mean(), abs=error)
