"""The bridge: accepted length without decoding, clients' examples, every method, the recipe and its command."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

import jaxfed
import jaxspec
from jaxspec import Text, federated, zoo
from jaxspec.__main__ import main
from jaxspec.exits import init_affine_lens
from jaxspec.federated import METHODS, Continued, Distilling, Federation, Problem, Settings, Setup
from jaxspec.federated.examples import accepted_length
from jaxspec.models.store import load_model, save_model
from jaxspec.stream_training import streaming_loss
from jaxspec.text import sentencepiece
from jaxspec.tokenizer import train_tokenizer
from jaxspec.train import Schedule, bits_per_character, distillation_loss, fit, fit_lens, lens_loss, log_probabilities
from tests.jaxspec import models

STORIES = Path(__file__).parents[1] / "data" / "stories260K"
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


def marked(single="<s> $A"):
    """Letters, with a token before (and, if asked for, behind) every text."""
    letters = {letter: index for index, letter in enumerate(["<s>", "</s>", *"abcdefghi"])}
    made = Tokenizer(WordLevel(letters, unk_token="</s>"))
    made.pre_tokenizer = Split("", "isolated")
    made.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return made


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("kind", [lambda tokenizer: tokenizer, Text.of], ids=["Tokenizer", "Text"])
def test_every_window_begins_as_a_prompt_does(single, kind):
    """The decoder sees a beginning-of-sequence token at position 0, and no end behind a prompt."""
    tokenizer, texts = marked(single), ["abcdefghab", "hgf"]
    rows, owners = federated.token_rows(kind(tokenizer), texts, 4, 3)
    assert rows.tolist() == [[0, 2, 3, 4], [0, 5, 6, 7], [0, 9, 2, 3], [0, 9, 8, 7]]
    assert owners == [0, 0, 0, 1]
    prompt = jaxspec.requests.encoded(["abc"], Text.of(marked()))[0]
    np.testing.assert_array_equal(rows[0], prompt)


def test_windows_of_a_sentencepiece_model_begin_with_its_first_token():
    text = sentencepiece(STORIES / "tok512.model")
    tale = "Once upon a time, there was a little girl named Lily. " * 3
    rows, _ = federated.token_rows(text, [tale], 12, 4)
    assert len(rows) == 4
    assert set(rows[:, 0].tolist()) == {text.encode("")[0]} == {1}
    assert not (rows[:, 1:] == 1).any()
    np.testing.assert_array_equal(rows[0], text.encode(tale)[:12])


def test_a_window_of_nothing_but_its_beginning():
    with pytest.raises(ValueError, match="expected windows longer than the 1 tokens before every prompt, got 1"):
        federated.token_rows(marked(), ["abc"], 1, 3)


def test_lenses_and_perplexities_see_windows_as_they_are_decoded():
    schedule, corpus = Schedule(batch_size=3, sequence_length=5), np.arange(50)
    plain, opened = (schedule.batch(corpus, 0, 0, first)["tokens"] for first in ((), (99,)))
    assert plain.shape == opened.shape == (3, 6)
    np.testing.assert_array_equal(opened[:, 1:], plain[:, 1:])
    assert np.all(opened[:, 0] == 99)
    model = jaxspec.load_llama2c(STORIES / "stories260K.bin", STORIES / "tok512.model")
    ids = model.text.encode("Once upon a time, there was a little girl named Lily. She loved to play.")[1:]
    rows = np.stack([[1, *ids[1:9]], [1, *ids[9:17]]])
    logs = np.asarray(log_probabilities(model.network, model.params, rows[:, :-1]))
    nats = -np.take_along_axis(logs, rows[None, :, 1:], axis=0).mean()
    found = bits_per_character(model, ids[:17], 20, length=8)
    assert found == pytest.approx(nats / np.log(2) * 17 / 20, rel=1e-5)


def test_a_lens_is_fitted_to_windows_as_they_are_decoded():
    corpus, schedule = prompts(30).reshape(-1), Schedule(steps=1, batch_size=2, sequence_length=8, warmup=0)
    target = models.target()._replace(text=Text(lambda text: np.asarray([10, *map(int, text)]), str))
    options = {"rank": 2, "schedule": schedule, "progress": False}
    found, bare = (fit_lens(model, 2, corpus, **options) for model in (target, models.target()))
    batch = schedule.batch(corpus, 0, 0, (10,))
    other = fit(
        lens_loss(target, 2), init_affine_lens(16, 2, jax.random.key(0)), lambda _: batch, schedule, progress=False
    )
    jax.tree.map(np.testing.assert_array_equal, found, other)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (found, bare)), strict=True))


#: A target that ends its text where it says this token.
STOP = 9


def ending():
    return models.target()._replace(text=Text(lambda text: np.asarray(text), str, stop=(STOP,)))


@pytest.fixture(scope="module")
def ended():
    """Rows that end early, one of them at once, and rows that do not."""
    rows = prompts(12, 3)
    found = federated.continued(ending(), rows, 16)
    sizes = (found.tokens >= 0).sum(axis=1) - PROMPT
    assert len(set(sizes.tolist())) > 3
    return found


def test_continuations_end_at_a_stop_token(ended):
    whole = federated.continued(models.target(), prompts(12, 3), 16).tokens
    for found, wanted in zip(ended.tokens.tolist(), whole.tolist(), strict=True):
        new = wanted[PROMPT:]
        size = PROMPT + (new.index(STOP) + 1 if STOP in new else 16)
        assert found == wanted[:size] + [-1] * (20 - size)


def _average(shares, *leaves):
    return np.tensordot(shares, np.stack(leaves), 1)


def test_nothing_is_learnt_behind_a_stop_token(ended):
    """The loss and its gradient are those of the rows one by one, each cut where it ends."""
    network, params, _ = models.draft()
    compiled = jax.jit(jax.value_and_grad(distillation_loss(network), has_aux=True))
    for laws in (None, federated.laws(ending(), ended.tokens, 3)):
        (client,) = federated.client_examples(ended, [0] * 12, laws)
        assert client["tokens"].min() >= 0
        (loss, _), grads = compiled(params, client, jax.random.key(0))
        parts, counts = [], []
        for row in range(12):
            size = int((ended.tokens[row] >= 0).sum()) - 1
            one = {name: array[row : row + 1].copy() for name, array in client.items()}
            one["tokens"][:, size:] = 5  # whatever stands there
            parts.append(compiled(params, one, jax.random.key(0)))
            counts.append(size if laws else size - PROMPT + 1)
        assert (client["labels"] >= 0).sum() == sum(counts)
        shares = np.asarray(counts, np.float32) / sum(counts)
        wanted = jax.tree.map(partial(_average, shares), *parts)
        np.testing.assert_allclose(loss, wanted[0][0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, wanted[1])


def test_streams_learn_nothing_behind_a_stop_token(ended):
    draft, key = models.streaming(), jax.random.key(0)
    compiled = jax.jit(streaming_loss(draft.network))
    other = np.where(ended.tokens < 0, 7, ended.tokens)
    labels = ended.tokens[:, 1:]
    wanted = compiled(draft.params, {"tokens": other[:, :-1], "labels": labels}, key)[0]
    np.testing.assert_allclose(compiled(draft.params, {"tokens": ended.tokens}, key)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("window", [1, 3])
def test_accepted_length_of_texts_that_end(ended, window):
    """Step by step by hand: a step that would go beyond the stop token ends there."""
    network, params, _ = models.draft()
    agrees = np.asarray(federated.examples._agreement(network, params, np.maximum(ended.tokens, 0)))[:, PROMPT - 1 :]
    found = []
    for line, row in zip(agrees.tolist(), ended.tokens[:, PROMPT:].tolist(), strict=True):
        size, place = sum(token >= 0 for token in row), 0
        while place < size if row[-1] < 0 else place + window < size:
            accepted = 0
            while accepted < window and place + accepted < size and line[place + accepted]:
                accepted += 1
            found.append(accepted)
            place += accepted + 1
    assert federated.accepted_length(network, params, ended, window) == pytest.approx(np.mean(found))
    at_once = ended._replace(tokens=np.pad(prompts(3), ((0, 0), (0, 16)), constant_values=-1))
    at_once.tokens[:, PROMPT] = STOP
    assert 0 <= federated.accepted_length(network, params, at_once, window) <= 1


def test_a_real_decode_of_texts_that_end_takes_as_many_steps(ended):
    finished = ended.tokens[ended.tokens[:, -1] < 0]
    real = jaxspec.generate(jaxspec.speculative(ending(), models.draft(), 3), finished[:, :PROMPT].tolist(), 16)
    lines = federated.examples._lines(*models.draft()[:2], Continued(finished, PROMPT), 3)
    assert len(federated.examples.step_ends(lines, 3)) == real.stats.steps


def test_texts_too_short_to_judge(data):
    with pytest.raises(ValueError, match="expected more than 16 tokens behind a prompt, got 16"):
        federated.accepted_length(*models.draft()[:2], data, 16)


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
    with pytest.warns(jaxfed.NothingTrainedWarning):
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


#: What a vanishing noise does to a private method: nothing, so that it must learn as well.
FAINT = federated.private("faint", max_norm=10.0, noise_multiplier=1e-6)


@pytest.fixture(scope="module")
def setup(data):
    """Three clients of four windows each, and two judges; one of them knows whose its rows are."""
    clients = federated.client_examples(
        federated.continued(models.target(), prompts(12, 1), 16), np.repeat([0, 1, 2], 4)
    )
    judges = {"validation": data, "unseen": data._replace(owners=np.asarray([0, 1, 1, 2]))}
    settings = Federation(rounds=3, cohort_size=2, local_steps=2, batch_size=2, evaluate_every=2, seed=1)
    return Setup(models.draft(), Problem(clients, judges), settings, window=3, progress=False)


def losses(setup, params):
    """Of a draft, or of one for each client, on every client's examples."""
    loss_fn = jax.jit(distillation_loss(models.draft().network))
    own = params if isinstance(params, dict) and 0 in params else dict.fromkeys(range(3), params)
    return {i: float(loss_fn(own[i], setup.problem.clients[i], jax.random.key(0))[0]) for i in own}


@pytest.fixture(scope="module")
def outcomes(setup):
    return {name: federated.run(setup, name, 0.05) for name in METHODS if name != "fedspeed-dp"}


@pytest.mark.slow
def test_every_method_learns(setup, outcomes):
    before = losses(setup, models.draft().params)
    found = outcomes | {"fedspeed-dp": federated.run(setup, FAINT, 0.05)}
    assert found.keys() == METHODS.keys()
    for name, outcome in found.items():
        after = losses(setup, outcome.params)
        assert sum(after.values()) < sum(before[i] for i in after), name
        assert outcome.rounds[0] == 0
        assert outcome.judged.keys() == setup.problem.judges.keys()
        assert all(len(curve) == len(outcome.rounds) for curve in outcome.judged.values())


@pytest.mark.slow
def test_methods_train_on_equally_many_samples(outcomes):
    assert {outcome.samples for outcome in outcomes.values()} == {3 * 2 * 2 * 2}


@pytest.mark.slow
def test_what_a_client_sends_is_smaller_after_compression(outcomes):
    size = {name: outcome.message_bytes for name, outcome in outcomes.items()}
    assert size["local-only"] is None is size["centralised"]
    assert size["fedspeed"] == 4 * 2 * sum(leaf.size for leaf in jax.tree.leaves(models.draft().params))
    assert size["fedspeed-topk"] < size["fedspeed-int8"] < 0.3 * size["fedspeed"]


@pytest.mark.slow
def test_who_trains_alone_is_judged_by_its_own_text(setup, outcomes):
    network, start, _ = models.draft()
    outcome, unseen = outcomes["local-only"], setup.problem.judges["unseen"]
    rows = [
        federated.accepted_length(network, outcome.params.get(owner, start), Continued(row[None], PROMPT), 3)
        for owner, row in zip(unseen.owners, unseen.tokens, strict=True)
    ]
    steps = [
        len(federated.examples.step_ends(_agrees(outcome.params.get(owner, start), row), 3))
        for owner, row in zip(unseen.owners, unseen.tokens, strict=True)
    ]
    assert outcome.judged["unseen"][-1] == pytest.approx(np.average(rows, weights=steps))


def _agrees(params, row):
    said = np.asarray(federated.examples._agreement(models.draft().network, params, row[None]))
    return said[:, PROMPT - 1 :]


def test_a_private_method_says_what_it_guarantees():
    pytest.importorskip("dp_accounting")
    settings = Federation(rounds=5, cohort_size=8)
    few, many = (METHODS["fedspeed-dp"].guarantee(settings, clients, 1e-3) for clients in (40, 400))
    assert few.epsilon > many.epsilon > 0
    assert "Poisson sampling with probability 0.2" in few.sampling
    assert METHODS["fedspeed"].guarantee(settings, 40) is None


def test_an_unknown_method():
    with pytest.raises(ValueError, match="expected a method, one of fedspeed, .*, got 'fedfast'"):
        federated.method_of("fedfast")


def test_the_first_laws_of_a_target_are_its_law(data):
    """Of the whole vocabulary they give the loss with the target at hand; of one token, the loss of its labels."""
    network, params, _ = models.draft()
    tokens, owners, key = data.tokens[:, :-1], [0] * len(data.tokens), jax.random.key(0)
    compiled = jax.jit(distillation_loss(network))

    def told(k):
        (client,) = federated.client_examples(data, owners, federated.laws(models.target(), data.tokens, k))
        return compiled(params, client, key)

    wanted = jax.jit(distillation_loss(network, models.target()))(params, {"tokens": tokens}, key)
    np.testing.assert_allclose(told(models.VOCAB)[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(told(models.VOCAB)[1]["agreement"], wanted[1]["agreement"], rtol=1e-6)
    (plain,) = federated.client_examples(data, owners)
    (sure,) = federated.client_examples(data, owners, federated.laws(models.target(), data.tokens, 1))
    sure["labels"] = plain["labels"]  # only behind the prompt, where the text is the target's own
    np.testing.assert_allclose(compiled(params, sure, key)[0], compiled(params, plain, key)[0], rtol=1e-5)


def test_laws_of_more_tokens_than_there_are(data):
    with pytest.raises(ValueError, match="expected 1 <= top_k <= 11"):
        federated.laws(models.target(), data.tokens, 12)


def test_streams_learn_what_the_target_said(data):
    """With labels everywhere it is the loss of the text itself; what is −1 or masked does not count."""
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


WORDS = "the crown the king the queen and all the world to be or not to be that is the question of a rose "
TEXTS = {f"user{i}": " ".join(np.random.default_rng(i).permutation(WORDS.split() * 6)) for i in range(5)}
RECIPE = Settings(
    Distilling(client_prompts=2, test_prompts=1, prompt_tokens=16, new_tokens=8, window=3),
    Federation(rounds=2, cohort_size=2, local_steps=1, batch_size=2, learning_rates=(0.1,), evaluate_every=1),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The whole recipe on a tiny pair: a letter is a token."""
    pair, folder = zoo.load(), tmp_path_factory.mktemp("recipe")
    config = replace(models.DRAFT, vocab_size=pair.target.network.config.vocab_size)
    draft = jaxspec.decoder(config, jax.random.key(0))
    target = jaxspec.decoder(replace(config, num_layers=2), jax.random.key(1))
    texts = [*TEXTS.values(), "too short"]
    arguments = (target, draft, pair.tokenizer, texts, RECIPE)
    return arguments, federated.federate(*arguments, directory=folder, progress=False), folder


@pytest.mark.slow
def test_a_federated_draft_decodes_and_is_published(recipe, tmp_path):
    (target, draft, *_), found, folder = recipe
    assert found.left_out == [5]
    assert found.acceptance.keys() == {"before", "after"}
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (draft.params, found.draft.params)), strict=True))
    loaded = load_model(folder / "draft")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, found.draft.params)
    prompt = ["to be or"]
    wanted = jaxspec.generate(jaxspec.autoregressive(target._replace(text=loaded.text)), prompt, 12)
    spoken = jaxspec.generate(jaxspec.speculative(target._replace(text=loaded.text), loaded, 3), prompt, 12)
    assert spoken.tokens == wanted.tokens
    jaxspec.save_huggingface(loaded, tmp_path)
    again = jaxspec.load_huggingface(tmp_path)
    said = [jaxspec.generate(jaxspec.autoregressive(model), prompt, 12).tokens for model in (loaded, again)]
    assert said[0] == said[1]
    assert again.text.encode("to be").tolist() == loaded.text.encode("to be").tolist()


@pytest.mark.slow
def test_the_recipe_goes_on_from_its_folder(recipe):
    arguments, found, folder = recipe
    said = sorted(folder.glob("said-*.npz"))
    written = [path.stat().st_mtime_ns for path in said]
    with pytest.warns(jaxfed.NothingTrainedWarning):
        again = federated.federate(*arguments, directory=folder, progress=False)
    jax.tree.map(np.testing.assert_array_equal, again.draft.params, found.draft.params)
    assert again.acceptance == found.acceptance
    assert len(said) == 1
    assert [path.stat().st_mtime_ns for path in said] == written


@pytest.mark.slow
def test_a_draft_with_streams_is_federated_with_them(recipe):
    (target, draft, tokenizer, texts, settings), *_ = recipe
    streaming = jaxspec.streaming(draft, 2)
    laws = replace(settings, distilling=replace(settings.distilling, top_k=4))
    found = federated.federate(target, streaming, tokenizer, texts, laws, progress=False)
    assert found.directory is None
    before, after = streaming.params["streams"], found.draft.params["streams"]
    assert (before["expand"] != after["expand"]).any()
    assert found.draft.network is streaming.network


def test_the_recipe_refuses(recipe):
    (target, draft, tokenizer, texts, settings), *_ = recipe
    with pytest.raises(ValueError, match="a method that makes one draft, got 'local-only'"):
        federated.federate(target, draft, tokenizer, texts, settings, method="local-only")
    with pytest.raises(ValueError, match=r"expected at least 2 clients \(a cohort\).*, got 1 of 2"):
        federated.federate(target, draft, tokenizer, ["short", texts[0]], settings)


@pytest.mark.slow
def test_the_command_federates_users_texts(tmp_path, capsys):
    """Lines of one user are one client; a folder of the same texts gives the same draft."""
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

    found = run("texts.jsonl")
    assert found["samples"] == 2 * 2 * 2
    assert found["left_out"] == []
    assert (tmp_path / "out" / "draft").samefile(found["draft"])
    assert run("texts") == found
    learned = zip(*map(jax.tree.leaves, (load_model(found["draft"]).params, zoo.load().draft.params)), strict=True)
    assert any((after != before).any() for after, before in learned)


def test_texts_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="expected .txt files or lines of JSON"):
        federated.read_texts(tmp_path)


@pytest.mark.slow
def test_the_command_federates_for_a_target_that_ends_its_texts(tmp_path, capsys):
    """Its tokenizer puts a token first, and it has a stop token: windows begin with the one, rows end at the other."""
    text = Text.of(marked(), stop=(STOP,))
    for name in ("target", "draft"):
        save_model(getattr(models, name)()._replace(text=text), tmp_path / name)
    (tmp_path / "texts").mkdir()
    for user in range(3):
        letters = np.random.default_rng(user).choice(list("abcdefgh"), 60)
        (tmp_path / "texts" / f"{user}.txt").write_text("".join(letters))
    sizes = {"client-prompts": 2, "test-prompts": 2, "prompt-tokens": PROMPT, "new-tokens": 13, "window": 3}
    rounds = {"rounds": 1, "cohort-size": 2, "local-steps": 1, "batch-size": 2, "learning-rates": 0.1}
    flags = {"target": tmp_path / "target", "draft": tmp_path / "draft", "texts": tmp_path / "texts"}
    flags |= {"out": tmp_path / "out", "method": "fedavg"}
    flags |= {f"distilling.{name}": value for name, value in sizes.items()}
    flags |= {f"federation.{name}": value for name, value in rounds.items()}
    main(["federate", *(str(part) for name, value in flags.items() for part in (f"--{name}", value)), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (said,) = (tmp_path / "out").glob("said-*.npz")
    tokens = np.load(said)["tokens"]
    assert np.all(tokens[:, 0] == 0)
    assert 0 < (tokens[:, -1] < 0).sum() < len(tokens)
    assert all(np.isfinite(value) for value in found["accepted"].values())
    learned = jax.tree.leaves(load_model(found["draft"]).params)
    assert all(bool(np.isfinite(leaf).all()) for leaf in learned)


def test_nothing_to_judge_by_is_refused():
    with pytest.raises(ValueError, match="at least one continuation to judge by, got none"):
        accepted_length(None, None, Continued(np.zeros((0, 8), np.int32), 4), 2)
