"""The bridge: accepted length without decoding, clients' examples, and a whole comparison in small."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec import federated
from jaxspec.federated import Continued, Federation
from jaxspec.tokenizer import train_tokenizer
from tests.jaxspec import models

PROMPT = 4
FEDERATION = Federation(
    rounds=1, cohort_size=2, local_steps=1, batch_size=2, learning_rates=(0.1,), evaluate_every=1, seed=3
)


def prompts(count, seed=0):
    return np.random.default_rng(seed).integers(models.VOCAB, size=(count, PROMPT)).astype(np.int32)


@pytest.fixture(scope="module")
def data():
    return federated.continued(models.target(), prompts(4), 16)


def test_continued_text_is_the_targets_own(data):
    assert data.prompt_length == PROMPT
    np.testing.assert_array_equal(data.tokens[:, :PROMPT], prompts(4))
    expected = [models.greedy_text(models.target(), row, 16) for row in prompts(4).tolist()]
    assert data.tokens[:, PROMPT:].tolist() == expected


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("draft", [models.draft, models.stranger], ids=lambda draft: draft.__name__)
def test_accepted_length_is_that_of_a_real_decode(data, window, draft):
    real = jaxspec.generate(models.speculative(window, draft=draft()), prompts(4).tolist(), 16 - window)
    found = federated.accepted_length(*draft()[:2], data, window)
    assert found == pytest.approx(real.stats.accepted_length, abs=1e-9)


def test_accepted_length_tells_drafts_apart(data):
    lengths = [
        federated.accepted_length(*draft()[:2], data, 3) for draft in (models.stranger, models.draft, models.target)
    ]
    assert lengths[0] < lengths[1] < lengths[2] == 3.0


def test_client_examples_learn_what_the_target_said():
    tokens = np.arange(24, dtype=np.int32).reshape(3, 8)
    first, second = federated.client_examples(Continued(tokens, 3), [0, 0, 4])
    np.testing.assert_array_equal(first["tokens"], tokens[:2, :-1])
    np.testing.assert_array_equal(second["tokens"], tokens[2:, :-1])
    np.testing.assert_array_equal(second["labels"], [[-1, -1, 19, 20, 21, 22, 23]])
    np.testing.assert_array_equal(first["labels"][:, 2:], tokens[:2, 3:])
    assert np.all(first["labels"][:, :2] == -1)


@pytest.mark.parametrize(
    ("size", "count", "starts"),
    [(10, 3, [0]), (30, 3, [0, 10, 20]), (30, 99, [0, 5, 10, 15, 20]), (11, 5, [0]), (15, 5, [0, 5]), (50, 1, [0])],
)
def test_windows_are_evenly_spread_and_overlap_by_half_at_most(size, count, starts):
    tokens = np.arange(100, 100 + size)
    found = federated.windows(tokens, 10, count)
    assert (found[:, 0] - 100).tolist() == starts
    assert np.all(np.diff(found, axis=1) == 1)


def test_a_text_shorter_than_a_window():
    with pytest.raises(ValueError, match="expected at least 10 tokens for one prompt, got 9"):
        federated.windows(np.arange(9), 10, 1)


def test_token_rows_know_their_texts():
    texts = ["abcdefghij", "abcd", "jihgfedcba"]
    rows, owners = federated.token_rows(train_tokenizer(texts), texts, 4, 3)
    assert rows.shape == (len(owners), 4)
    assert sorted(set(owners)) == [0, 1, 2]
    assert owners == sorted(owners)
    assert owners.count(1) == 1


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    clients = federated.client_examples(federated.continued(models.target(), prompts(4, 1), 8), [0, 0, 1, 1])
    validation, unseen = (federated.continued(models.target(), prompts(3, seed), 10) for seed in (2, 5))
    directory = tmp_path_factory.mktemp("compare")
    arguments = (models.draft(), clients, validation, unseen, FEDERATION)
    found = federated.compare(*arguments, window=3, directory=directory, progress=False)
    return found, validation, unseen, arguments, directory


@pytest.mark.slow
def test_compare_gives_four_acceptances(report):
    found, _, unseen, *_ = report
    assert list(found.acceptance) == ["before", "fedspeed", "fedavg", "centralised"]
    network, params, _ = models.draft()
    assert found.acceptance["before"] == federated.accepted_length(network, params, unseen, 3)
    for name, outcome in found.outcomes.items():
        assert found.acceptance[name] == federated.accepted_length(network, outcome.params, unseen, 3)


@pytest.mark.slow
def test_compare_keeps_each_methods_curve(report):
    found, validation, *_ = report
    network, before, _ = models.draft()
    for outcome in found.outcomes.values():
        assert outcome.learning_rate in FEDERATION.learning_rates
        assert outcome.rounds[0] == 0
        assert len(outcome.rounds) == len(outcome.accepted)
        assert outcome.accepted[0] == federated.accepted_length(network, before, validation, 3)
        assert outcome.accepted[-1] == federated.accepted_length(network, outcome.params, validation, 3)
    best = found.outcomes["centralised"].accepted
    assert best[-1] == max(best)


@pytest.mark.slow
def test_federated_drafts_have_learned_something(report):
    found, *_ = report
    trained = [found.outcomes[name].params for name in ("fedspeed", "fedavg")]
    leaves = [jax.tree.leaves(params) for params in (models.draft().params, *trained)]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert any(bool((a != b).any()) for a, b in zip(leaves[first], leaves[second], strict=True))


@pytest.mark.slow
def test_compare_goes_on_from_its_checkpoints(report):
    found, _, _, arguments, directory = report
    again = federated.compare(*arguments, window=3, directory=directory, progress=False)
    assert again.acceptance == found.acceptance


@pytest.mark.slow
def test_compare_chooses_the_learning_rate_by_validation(report):
    _, _, _, (draft, clients, validation, unseen, settings), _ = report
    rates = (1e-6, 3.0)

    def run(learning_rates):
        grid = replace(settings, learning_rates=learning_rates, rounds=2)
        return federated.compare(draft, clients, validation, unseen, grid, window=3, progress=False).outcomes

    singles, outcomes = [run((rate,)) for rate in rates], run(rates)
    for name, outcome in outcomes.items():
        reached = [single[name].accepted[-1] for single in singles]
        assert outcome.accepted[-1] == max(reached)
        assert outcome.learning_rate == rates[int(np.argmax(reached))]
