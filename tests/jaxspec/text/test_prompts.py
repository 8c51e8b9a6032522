"""Windows begin as prompts do, and texts end at a stop token: data for training and measuring drafts and lenses."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

import jaxspec
from jaxspec import Text, federated
from jaxspec.__main__ import main
from jaxspec.federated import Continued, _examples
from jaxspec.loading.store import load_model, save_model
from jaxspec.text._text import sentencepiece
from jaxspec.training import (
    Schedule,
    bits_per_character,
    distillation_loss,
    fit,
    fit_lens,
    lens_loss,
    log_probabilities,
    streaming_loss,
)
from jaxspec.verify.exits import init_affine_lens
from tests.support.jaxspec import models

STORIES = Path(__file__).parents[2] / "data" / "stories260K"
PROMPT = 4


def prompts(count, seed=0):
    return np.random.default_rng(seed).integers(models.VOCAB, size=(count, PROMPT)).astype(np.int32)


def marked(single="<s> $A"):
    """Letters, with a token before (and optionally after) every text."""
    letters = {letter: index for index, letter in enumerate(["<s>", "</s>", *"abcdefghi"])}
    tokenizer = Tokenizer(WordLevel(letters, unk_token="</s>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("kind", [lambda tokenizer: tokenizer, Text.of], ids=["Tokenizer", "Text"])
def test_every_window_begins_as_a_prompt_does(single, kind):
    """The decoder sees a beginning-of-sequence token at position 0, and no end token after a prompt."""
    tokenizer, texts = marked(single), ["abcdefghab", "hgf"]
    rows, owners = federated.token_rows(kind(tokenizer), texts, 4, 3)
    assert rows.tolist() == [[0, 2, 3, 4], [0, 5, 6, 7], [0, 9, 2, 3], [0, 9, 8, 7]]
    assert owners == [0, 0, 0, 1]
    prompt = jaxspec.generation.requests.encoded(["abc"], Text.of(marked()))[0]
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
    bits = bits_per_character(model, ids[:17], 20, length=8)
    assert bits == pytest.approx(nats / np.log(2) * 17 / 20, rel=1e-5)


def test_a_lens_is_fitted_to_windows_as_they_are_decoded():
    corpus, schedule = prompts(30).reshape(-1), Schedule(steps=1, batch_size=2, sequence_length=8, warmup=0)
    target = models.target()._replace(text=Text(lambda text: np.asarray([10, *map(int, text)]), str))
    options = {"rank": 2, "schedule": schedule, "progress": False}
    lens = fit_lens(target, 2, corpus, **options)
    batch = schedule.batch(corpus, 0, 0, (10,))
    other = fit(
        lens_loss(target, 2), init_affine_lens(16, 2, jax.random.key(0)), lambda _: batch, schedule, progress=False
    )
    jax.tree.map(np.testing.assert_array_equal, lens, other)


#: The stop token of a target.
STOP = 9


def ending():
    return models.target()._replace(text=Text(lambda text: np.asarray(text), str, stop=(STOP,)))


@pytest.fixture(scope="module")
def ended():
    """Rows that end early, one of them at once, and rows that do not."""
    rows = prompts(12, 3)
    result = federated.continued(ending(), rows, 16)
    sizes = (result.tokens >= 0).sum(axis=1) - PROMPT
    assert len(set(sizes.tolist())) > 3
    return result


def test_continuations_end_at_a_stop_token(ended):
    whole = federated.continued(models.target(), prompts(12, 3), 16).tokens
    for row, expected in zip(ended.tokens.tolist(), whole.tolist(), strict=True):
        new = expected[PROMPT:]
        size = PROMPT + (new.index(STOP) + 1 if STOP in new else 16)
        assert row == expected[:size] + [-1] * (20 - size)


def _average(shares, *leaves):
    return np.tensordot(shares, np.stack(leaves), 1)


def test_nothing_is_learnt_after_a_stop_token(ended):
    """The loss and its gradient are those of the rows one by one, each cut where it ends."""
    network, params, _ = models.draft()
    compiled = jax.jit(jax.value_and_grad(distillation_loss(network), has_aux=True))
    for top in (None, federated.top_tokens(ending(), ended.tokens, 3)):
        (client,) = federated.client_examples(ended, [0] * 12, top)
        assert client["tokens"].min() >= 0
        (loss, _), grads = compiled(params, client, jax.random.key(0))
        parts, counts = [], []
        for row in range(12):
            size = int((ended.tokens[row] >= 0).sum()) - 1
            one = {name: array[row : row + 1].copy() for name, array in client.items()}
            one["tokens"][:, size:] = 5  # the value does not matter
            parts.append(compiled(params, one, jax.random.key(0)))
            counts.append(size if top else size - PROMPT + 1)
        assert (client["labels"] >= 0).sum() == sum(counts)
        shares = np.asarray(counts, np.float32) / sum(counts)
        expected = jax.tree.map(partial(_average, shares), *parts)
        np.testing.assert_allclose(loss, expected[0][0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected[1])


def test_streams_learn_nothing_after_a_stop_token(ended):
    draft, key = models.streaming(), jax.random.key(0)
    compiled = jax.jit(streaming_loss(draft.network))
    other = np.where(ended.tokens < 0, 7, ended.tokens)
    labels = ended.tokens[:, 1:]
    expected = compiled(draft.params, {"tokens": other[:, :-1], "labels": labels}, key)[0]
    np.testing.assert_allclose(compiled(draft.params, {"tokens": ended.tokens}, key)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("window", [1, 3])
def test_accepted_length_of_texts_that_end(ended, window):
    """Step by step by hand: a step that would go beyond the stop token ends there."""
    network, params, _ = models.draft()
    agrees = np.asarray(_examples._agreement(network, params, np.maximum(ended.tokens, 0)))[:, PROMPT - 1 :]
    lengths = []
    for line, row in zip(agrees.tolist(), ended.tokens[:, PROMPT:].tolist(), strict=True):
        size, position = sum(token >= 0 for token in row), 0
        while position < size if row[-1] < 0 else position + window < size:
            accepted = 0
            while accepted < window and position + accepted < size and line[position + accepted]:
                accepted += 1
            lengths.append(accepted)
            position += accepted + 1
    assert federated.accepted_length(network, params, ended, window) == pytest.approx(np.mean(lengths))
    at_once = ended._replace(tokens=np.pad(prompts(3), ((0, 0), (0, 16)), constant_values=-1))
    at_once.tokens[:, PROMPT] = STOP
    assert 0 <= federated.accepted_length(network, params, at_once, window) <= 1


def test_a_real_decode_of_texts_that_end_takes_as_many_steps(ended):
    finished = ended.tokens[ended.tokens[:, -1] < 0]
    real = jaxspec.generate(jaxspec.speculative(ending(), models.draft(), 3), finished[:, :PROMPT].tolist(), 16)
    lines = _examples._agreement_rows(*models.draft()[:2], Continued(finished, PROMPT), 3)
    assert len(_examples.step_ends(lines, 3)) == real.stats.steps


def test_texts_too_short_to_measure():
    data = federated.continued(models.target(), prompts(4), 16)
    with pytest.raises(ValueError, match="expected more than 16 tokens after a prompt, got 16"):
        federated.accepted_length(*models.draft()[:2], data, 16)


@pytest.mark.slow
def test_the_command_federates_for_a_target_that_ends_its_texts(tmp_path, capsys):
    """Its tokenizer adds a first token, with which windows begin, and rows end at its stop token."""
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
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    (cached,) = (tmp_path / "out").glob("said-*.npz")
    tokens = np.load(cached)["tokens"]
    assert 0 < (tokens[:, -1] < 0).sum() < len(tokens)
    assert all(np.isfinite(value) for value in report["accepted"].values())
    learned = jax.tree.leaves(load_model(report["draft"]).params)
    assert all(bool(np.isfinite(leaf).all()) for leaf in learned)
