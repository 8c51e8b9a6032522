"""Federated drafts: accepted length without decoding, training examples, every method, the recipe, its command."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxfed
import jaxspec
from jaxspec import federated, zoo
from jaxspec.__main__ import main
from jaxspec.federated import (
    METHODS,
    VALIDATION,
    Continued,
    Distilling,
    FederatedSettings,
    FederatedSetup,
    Federation,
    TextProblem,
    _examples,
)
from jaxspec.federated._alone import _local_training
from jaxspec.loading.store import load_model
from jaxspec.text import windows
from jaxspec.text.tokenizer import train_tokenizer
from jaxspec.training import distillation_loss, streaming_loss
from tests.support.jaxspec import models

PROMPT = 4
FEDERATION = Federation(
    rounds=1, cohort_size=2, local_steps=1, batch_size=2, learning_rates=(0.1,), evaluate_every=1, seed=3
)


def prompts(count, seed=0):
    return np.random.default_rng(seed).integers(models.VOCAB, size=(count, PROMPT)).astype(np.int32)


@pytest.fixture(scope="module")
def data():
    return federated.continued(models.target(), prompts(4), 16)


def test_continuations_are_greedy_tokens_of_the_target(data):
    assert data.prompt_length == PROMPT
    np.testing.assert_array_equal(data.tokens[:, :PROMPT], prompts(4))
    expected = [models.greedy_text(models.target(), row, 16) for row in prompts(4).tolist()]
    assert data.tokens[:, PROMPT:].tolist() == expected


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("draft", [models.draft, models.stranger], ids=lambda draft: draft.__name__)
def test_accepted_length_is_that_of_a_real_decode(data, window, draft):
    real = jaxspec.generate(models.speculative(window, draft=draft()), prompts(4).tolist(), 16 - window)
    result = federated.accepted_length(*draft()[:2], data, window)
    assert result == pytest.approx(real.stats.accepted_length, abs=1e-9)


def test_a_better_draft_has_a_larger_accepted_length(data):
    lengths = [
        federated.accepted_length(*draft()[:2], data, 3) for draft in (models.stranger, models.draft, models.target)
    ]
    assert lengths[0] < lengths[1] < lengths[2] == 3.0


def test_labels_are_the_target_s_tokens():
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
    result = windows(tokens, 10, count)
    assert (result[:, 0] - 100).tolist() == starts
    assert np.all(np.diff(result, axis=1) == 1)


def test_a_text_shorter_than_a_window():
    with pytest.raises(ValueError, match="expected at least 10 tokens for one prompt, got 9"):
        windows(np.arange(9), 10, 1)


def test_token_rows_return_the_text_of_each_row():
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
    problem = TextProblem(clients, {VALIDATION: validation})
    setup = FederatedSetup(models.draft(), problem, FEDERATION, 3, directory, progress=False)
    return federated.compare(setup, unseen), setup, unseen


@pytest.mark.slow
def test_compare_reports_four_accepted_lengths(report):
    result, _, unseen = report
    assert list(result.acceptance) == ["before", "fedspeed", "fedavg", "centralised"]
    network, params, _ = models.draft()
    assert result.acceptance["before"] == federated.accepted_length(network, params, unseen, 3)
    for name, outcome in result.outcomes.items():
        assert result.acceptance[name] == federated.accepted_length(network, outcome.params, unseen, 3)


@pytest.mark.slow
def test_compare_keeps_each_methods_curve(report):
    result, setup, _ = report
    validation = setup.problem.evaluation[VALIDATION]
    network, before, _ = models.draft()
    for outcome in result.outcomes.values():
        assert outcome.learning_rate in FEDERATION.learning_rates
        assert outcome.rounds[0] == 0
        assert len(outcome.rounds) == len(outcome.accepted)
        assert outcome.accepted[0] == federated.accepted_length(network, before, validation, 3)
        assert outcome.accepted[-1] == federated.accepted_length(network, outcome.params, validation, 3)
    best = result.outcomes["centralised"].accepted
    assert best[-1] == max(best)


@pytest.mark.slow
def test_federated_drafts_have_learned_something(report):
    result, *_ = report
    trained = [result.outcomes[name].params for name in ("fedspeed", "fedavg")]
    leaves = [jax.tree.leaves(params) for params in (models.draft().params, *trained)]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert any(bool((a != b).any()) for a, b in zip(leaves[first], leaves[second], strict=True))


@pytest.mark.slow
def test_compare_resumes_from_its_checkpoints(report):
    result, setup, unseen = report
    with pytest.warns(jaxfed.NothingTrainedWarning):
        again = federated.compare(setup, unseen)
    assert again.acceptance == result.acceptance


@pytest.mark.slow
def test_compare_chooses_the_learning_rate_by_validation(report):
    _, setup, unseen = report
    rates = (1e-6, 3.0)

    def run(learning_rates):
        grid = replace(FEDERATION, learning_rates=learning_rates, rounds=2)
        return federated.compare(replace(setup, settings=grid, directory=None), unseen).outcomes

    singles, outcomes = [run((rate,)) for rate in rates], run(rates)
    for name, outcome in outcomes.items():
        reached = [single[name].accepted[-1] for single in singles]
        assert outcome.accepted[-1] == max(reached)
        assert outcome.learning_rate == rates[int(np.argmax(reached))]


#: A private method with negligible noise, which must learn too.
FAINT = federated.private("faint", max_norm=10.0, noise_multiplier=1e-6)


@pytest.fixture(scope="module")
def setup(data):
    """Three clients of four windows each, and two evaluation sets; the rows of one of them have owners."""
    clients = federated.client_examples(
        federated.continued(models.target(), prompts(12, 1), 16), np.repeat([0, 1, 2], 4)
    )
    evaluation = {"validation": data, "unseen": data._replace(owners=np.asarray([0, 1, 1, 2]))}
    settings = Federation(rounds=3, cohort_size=2, local_steps=2, batch_size=2, evaluate_every=2, seed=1)
    return FederatedSetup(models.draft(), TextProblem(clients, evaluation), settings, window=3, progress=False)


def losses(setup, params):
    """Loss of one draft, or of one draft per client, on every client's examples."""
    loss_fn = jax.jit(distillation_loss(models.draft().network))
    own = params if isinstance(params, dict) and 0 in params else dict.fromkeys(range(3), params)
    return {i: float(loss_fn(own[i], setup.problem.clients[i], jax.random.key(0))[0]) for i in own}


@pytest.fixture(scope="module")
def outcomes(setup):
    return {name: federated.run(setup, name, 0.05) for name in METHODS if name != "fedspeed-dp"}


@pytest.mark.slow
def test_every_method_learns(setup, outcomes):
    before = losses(setup, models.draft().params)
    result = outcomes | {"fedspeed-dp": federated.run(setup, FAINT, 0.05)}
    assert result.keys() == METHODS.keys()
    for name, outcome in result.items():
        after = losses(setup, outcome.params)
        assert sum(after.values()) < sum(before[i] for i in after), name
        assert outcome.rounds[0] == 0
        assert outcome.curves.keys() == setup.problem.evaluation.keys()
        assert all(len(curve) == len(outcome.rounds) for curve in outcome.curves.values())


@pytest.mark.slow
def test_methods_train_on_equally_many_samples(outcomes):
    assert {outcome.samples for outcome in outcomes.values()} == {3 * 2 * 2 * 2}


@pytest.mark.slow
def test_compressed_messages_are_smaller(outcomes):
    size = {name: outcome.message_bytes for name, outcome in outcomes.items()}
    assert size["local-only"] is None is size["centralised"]
    assert size["fedspeed"] == 4 * 2 * sum(leaf.size for leaf in jax.tree.leaves(models.draft().params))
    assert size["fedspeed-topk"] < size["fedspeed-int8"] < 0.3 * size["fedspeed"]


@pytest.mark.slow
def test_clients_that_train_alone_are_evaluated_on_their_own_text(setup, outcomes):
    network, start, _ = models.draft()
    outcome, unseen = outcomes["local-only"], setup.problem.evaluation["unseen"]
    rows = [
        federated.accepted_length(network, outcome.params.get(owner, start), Continued(row[None], PROMPT), 3)
        for owner, row in zip(unseen.owners, unseen.tokens, strict=True)
    ]
    steps = [
        len(_examples.step_ends(_agrees(outcome.params.get(owner, start), row), 3))
        for owner, row in zip(unseen.owners, unseen.tokens, strict=True)
    ]
    assert outcome.curves["unseen"][-1] == pytest.approx(np.average(rows, weights=steps))


def _agrees(params, row):
    agrees = np.asarray(_examples._agreement(models.draft().network, params, row[None]))
    return agrees[:, PROMPT - 1 :]


def test_a_private_method_has_a_guarantee():
    pytest.importorskip("dp_accounting")
    settings = Federation(rounds=5, cohort_size=8)
    few, many = (METHODS["fedspeed-dp"].guarantee(settings, clients, 1e-3) for clients in (40, 400))
    assert few.epsilon > many.epsilon > 0
    assert "Poisson sampling with probability 0.2" in few.sampling
    assert METHODS["fedspeed"].guarantee(settings, 40) is None


def test_an_unknown_method():
    with pytest.raises(ValueError, match="expected a method, one of fedspeed, .*, got 'fedfast'"):
        federated.method_of("fedfast")


def test_all_top_tokens_are_the_target_s_distribution(data):
    """With the whole vocabulary the loss is that with the target itself; with one token, that of the labels."""
    network, params, _ = models.draft()
    tokens, owners, key = data.tokens[:, :-1], [0] * len(data.tokens), jax.random.key(0)
    compiled = jax.jit(distillation_loss(network))

    def loss(k):
        (client,) = federated.client_examples(data, owners, federated.top_tokens(models.target(), data.tokens, k))
        return compiled(params, client, key)

    expected = jax.jit(distillation_loss(network, models.target()))(params, {"tokens": tokens}, key)
    np.testing.assert_allclose(loss(models.VOCAB)[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(loss(models.VOCAB)[1]["agreement"], expected[1]["agreement"], rtol=1e-6)
    (plain,) = federated.client_examples(data, owners)
    (single,) = federated.client_examples(data, owners, federated.top_tokens(models.target(), data.tokens, 1))
    single["labels"] = plain["labels"]  # only after the prompt, where the text is the target's
    np.testing.assert_allclose(compiled(params, single, key)[0], compiled(params, plain, key)[0], rtol=1e-5)


def test_more_top_tokens_than_the_vocabulary(data):
    with pytest.raises(ValueError, match="expected 1 <= top_k <= 11"):
        federated.top_tokens(models.target(), data.tokens, 12)


def test_streams_learn_the_target_s_tokens(data):
    """With labels everywhere it is the loss of the text itself; labels of −1 and masked rows do not count."""
    draft = models.streaming()
    compiled, key = jax.jit(streaming_loss(draft.network)), jax.random.key(0)
    tokens = data.tokens
    plain = compiled(draft.params, {"tokens": tokens}, key)[0]
    batch = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "mask": np.ones(len(tokens), bool)}
    np.testing.assert_allclose(compiled(draft.params, batch, key)[0], plain, rtol=1e-6)
    other = {name: np.concatenate([leaf, leaf[:1] * 0]) for name, leaf in batch.items()}
    np.testing.assert_allclose(compiled(draft.params, other, key)[0], plain, rtol=1e-6)
    (client,) = federated.client_examples(data, [0] * len(tokens))
    assert abs(float(compiled(draft.params, client | {"mask": batch["mask"]}, key)[0]) - float(plain)) > 1e-3


VOCABULARY = "the crown the king the queen and all the world to be or not to be that is the question of a rose "
TEXTS = {f"user{i}": " ".join(np.random.default_rng(i).permutation(VOCABULARY.split() * 6)) for i in range(5)}
RECIPE = FederatedSettings(
    Distilling(client_prompts=2, test_prompts=1, prompt_tokens=16, new_tokens=8, window=3),
    Federation(rounds=2, cohort_size=2, local_steps=1, batch_size=2, learning_rates=(0.1,), evaluate_every=1),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The whole recipe on a tiny pair of models; every letter is a token."""
    pair, folder = zoo.load(), tmp_path_factory.mktemp("recipe")
    config = replace(models.DRAFT, vocab_size=pair.target.network.config.vocab_size)
    draft = jaxspec.decoder(config, jax.random.key(0))
    target = jaxspec.decoder(replace(config, num_layers=2), jax.random.key(1))
    texts = [*TEXTS.values(), "too short"]
    arguments = (target, draft, pair.tokenizer, texts, RECIPE)
    return arguments, federated.federate(*arguments, directory=folder, progress=False), folder


@pytest.mark.slow
def test_a_federated_draft_decodes_and_is_published(recipe, tmp_path):
    (target, draft, *_), result, folder = recipe
    assert result.left_out == [5]
    assert result.acceptance.keys() == {"before", "after"}
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (draft.params, result.draft.params)), strict=True))
    loaded = load_model(folder / "draft")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, result.draft.params)
    prompt = ["to be or"]
    expected = jaxspec.generate(jaxspec.autoregressive(target._replace(text=loaded.text)), prompt, 12)
    drafted = jaxspec.generate(jaxspec.speculative(target._replace(text=loaded.text), loaded, 3), prompt, 12)
    assert drafted.tokens == expected.tokens
    jaxspec.save_huggingface(loaded, tmp_path)
    again = jaxspec.load_huggingface(tmp_path)
    tokens = [jaxspec.generate(jaxspec.autoregressive(model), prompt, 12).tokens for model in (loaded, again)]
    assert tokens[0] == tokens[1]
    assert again.text.encode("to be").tolist() == loaded.text.encode("to be").tolist()


@pytest.mark.slow
def test_the_recipe_resumes_from_its_folder(recipe):
    arguments, result, folder = recipe
    cached = sorted(folder.glob("said-*.npz"))
    written = [path.stat().st_mtime_ns for path in cached]
    with pytest.warns(jaxfed.NothingTrainedWarning):
        again = federated.federate(*arguments, directory=folder, progress=False)
    jax.tree.map(np.testing.assert_array_equal, again.draft.params, result.draft.params)
    assert again.acceptance == result.acceptance
    assert len(cached) == 1
    assert [path.stat().st_mtime_ns for path in cached] == written


@pytest.mark.slow
def test_a_draft_with_streams_is_federated_with_them(recipe):
    (target, draft, tokenizer, texts, settings), *_ = recipe
    streaming = jaxspec.streaming(draft, 2)
    with_top = replace(settings, distilling=replace(settings.distilling, top_k=4))
    result = federated.federate(target, streaming, tokenizer, texts, with_top, progress=False)
    assert result.directory is None
    before, after = streaming.params["streams"], result.draft.params["streams"]
    assert (before["expand"] != after["expand"]).any()
    assert result.draft.network is streaming.network


def test_the_recipe_refuses(recipe):
    (target, draft, tokenizer, texts, settings), *_ = recipe
    with pytest.raises(ValueError, match="a method that makes one draft, got 'local-only'"):
        federated.federate(target, draft, tokenizer, texts, settings, method="local-only")
    with pytest.raises(ValueError, match=r"expected at least 2 clients \(a cohort\).*, got 1 of 2"):
        federated.federate(target, draft, tokenizer, ["short", texts[0]], settings)


@pytest.mark.slow
def test_the_command_federates_users_texts(tmp_path, capsys):
    """All lines of a user are one client; a folder of the same texts gives the same draft."""
    lines = [{"user": user, "text": part} for user, text in TEXTS.items() for part in (text[:200], text[200:])]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert federated.read_texts(tmp_path / "texts.jsonl")["user3"] == f"{TEXTS['user3'][:200]}\n{TEXTS['user3'][200:]}"
    (tmp_path / "texts").mkdir()
    for user, text in federated.read_texts(tmp_path / "texts.jsonl").items():
        (tmp_path / "texts" / f"{user}.txt").write_text(text)
    sizes = {"distilling": RECIPE.distilling, "federation": RECIPE.federation}
    flags = [
        part
        for group, settings in sizes.items()
        for name, value in vars(settings).items()
        if name not in ("fedspeed", "top_k")
        for part in (f"--{group}.{name.replace('_', '-')}", str(value[0] if isinstance(value, tuple) else value))
    ]

    def run(texts):
        where = "--texts", str(tmp_path / texts), "--out", str(tmp_path / "out"), "--method", "fedavg"
        main(["federate", *where, *flags, "--json"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    result = run("texts.jsonl")
    assert result["samples"] == 2 * 2 * 2
    assert result["left_out"] == []
    assert (tmp_path / "out" / "draft").samefile(result["draft"])
    with pytest.warns(jaxfed.NothingTrainedWarning, match="fedavg-0.1 has done 2 rounds already"):
        assert run("texts") == result
    learned = zip(*map(jax.tree.leaves, (load_model(result["draft"]).params, zoo.load().draft.params)), strict=True)
    assert any((after != before).any() for after, before in learned)


def test_a_folder_without_texts(tmp_path):
    with pytest.raises(ValueError, match="expected .txt files or lines of JSON"):
        federated.read_texts(tmp_path)


def test_the_learning_rate_decays_for_clients_that_train_alone():
    def loss_fn(params, batch, key):
        return jaxfed.masked_mean(batch["x"] * params["w"], batch["mask"]), {}

    train = _local_training(jaxfed.fedavg(loss_fn, client_learning_rate=0.5, learning_rate_decay=0.5))
    batches = {"x": np.ones((1, 2), np.float32), "mask": np.ones((1, 2), bool)}
    moved = [float(train({"w": np.float32(0)}, batches, jax.random.key(0), number)["w"]) for number in (0, 2)]
    assert moved == [-0.5, -0.125]


def test_no_continuation_to_evaluate_on():
    with pytest.raises(ValueError, match="at least one continuation to evaluate on, got none"):
        federated.accepted_length(None, None, Continued(np.zeros((0, 8), np.int32), 4), 2)
