"""The host loop: limits, stop tokens, statistics, text."""

import re

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.tokenizer import train_tokenizer
from tests.jaxspec import models

METHODS = {
    "autoregressive": lambda: jaxspec.autoregressive(models.target()),
    "speculative": models.speculative,
    "mirror": models.mirror,
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]()


def started(method, new_tokens):
    """The state before the first step of ``PROMPTS``."""
    return method.init(models.request(max_new_tokens=new_tokens), 64)


def by_hand(method):
    """Steps one after the other, each read in full, until none adds a token."""
    state, infos = started(method, models.NEW_TOKENS), []
    while not infos or infos[-1].num_emitted.any():
        state, info = method.step(state)
        infos.append(jax.device_get(info))
    return infos


@pytest.mark.parametrize("new_tokens", [1, 2, 5, 14])
def test_exactly_as_many_tokens_as_asked_for(method, new_tokens):
    result = jaxspec.generate(method, models.PROMPTS, new_tokens)
    assert result.tokens == [row[:new_tokens] for row in models.expected()]
    assert result.stats.new_tokens == 2 * new_tokens


@pytest.mark.parametrize("place", [0, 4, 13])
def test_a_stop_token_is_kept_and_ends_its_sequence(method, place):
    stop = models.expected()[1][place]
    result = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, stop=[stop])
    for row, whole in zip(result.tokens, models.expected(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert row == whole[:end]
    assert result.stats.new_tokens == sum(map(len, result.tokens))


def test_any_of_several_stop_tokens(method):
    stop = {models.expected()[0][6], models.expected()[1][3]}
    result = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, stop=tuple(stop))
    for row, whole in zip(result.tokens, models.expected(), strict=True):
        ends = [place for place, token in enumerate(whole) if token in stop]
        assert row == whole[: ends[0] + 1]


def test_statistics_follow_their_definitions(method):
    infos = by_hand(method)
    stats = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).stats
    emitted = np.stack([info.num_emitted for info in infos])
    working = emitted > 0
    needed = working & (np.cumsum(emitted, axis=0) < models.NEW_TOKENS)
    accepted = np.stack([info.num_accepted for info in infos])
    reused = np.stack([np.zeros_like(working[0]) if info.reused is None else info.reused for info in infos])
    assert emitted.sum(axis=0).tolist() == [models.NEW_TOKENS] * 2
    assert stats.steps == working.sum()
    assert stats.new_tokens == emitted.sum()
    assert stats.accepted == accepted[working].sum()
    assert stats.needed == needed.sum()
    assert stats.reused == reused[needed].sum()
    assert stats.accepted_length == pytest.approx(accepted[working].mean())
    assert stats.reuse_rate == pytest.approx(reused[needed].mean())
    seconds = stats.prefill_seconds + stats.decode_seconds
    assert seconds > 0
    assert stats.tokens_per_second == pytest.approx(stats.new_tokens / seconds)


def test_steps_emit_accepted_tokens_and_one_more(method):
    infos = by_hand(method)
    rows = [[], []]
    for info in infos:
        for index, row in enumerate(rows):
            left = models.NEW_TOKENS - len(row)
            assert info.num_emitted[index] == min(info.num_accepted[index] + 1, left)
            row.extend(info.tokens[index, : info.num_emitted[index]].tolist())
    assert rows == models.expected()


def test_a_step_after_the_end_emits_nothing(method):
    state = started(method, 1)
    state, first = method.step(state)
    _, second = method.step(state)
    assert first.num_emitted.tolist() == [1, 1]
    assert second.num_emitted.tolist() == [0, 0]


def test_only_mirror_reuses():
    reused = {name: jaxspec.generate(METHODS[name](), models.PROMPTS, 14).stats.reused for name in METHODS}
    assert reused["autoregressive"] == reused["speculative"] == 0 < reused["mirror"]


def test_text_with_a_tokenizer(method):
    """Ten characters and the unknown one are the tiny vocabulary."""
    tokenizer, alphabet = train_tokenizer(["abcdefghij"]), "\ufffdabcdefghij"
    prompts = ["".join(alphabet[token] for token in prompt) for prompt in models.PROMPTS]
    result = jaxspec.generate(method, prompts, models.NEW_TOKENS, tokenizer=tokenizer)
    assert result.tokens == models.expected()
    assert result.text == ["".join(alphabet[token] for token in row) for row in models.expected()]


def test_token_prompts_have_text_only_with_a_tokenizer(method):
    assert jaxspec.generate(method, models.PROMPTS, 1).text is None


def test_arrays_as_prompts(method):
    prompts = [np.asarray(prompt, np.int64) for prompt in models.PROMPTS]
    assert jaxspec.generate(method, prompts, models.NEW_TOKENS).tokens == models.expected()


def test_a_progress_bar_counts_the_tokens(method, capsys):
    jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, progress=True)
    assert re.search(r"decode: 100%.* 28/28 ", capsys.readouterr().err)
