"""The host loop: limits, stop tokens, statistics, text."""

import re

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.text.tokenizer import train_tokenizer
from tests.support.jaxspec import models, own_models

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
    """All steps until none adds a token, read one after the other."""
    state, infos = started(method, models.NEW_TOKENS), []
    while not infos or infos[-1].num_emitted.any():
        state, info = method.step(state)
        infos.append(jax.device_get(info))
    return infos


@pytest.mark.parametrize("new_tokens", [1, 2, 5, 14])
def test_exactly_max_new_tokens_are_generated(method, new_tokens):
    result = jaxspec.generate(method, models.PROMPTS, new_tokens)
    assert result.tokens == [row[:new_tokens] for row in models.expected()]
    assert result.stats.new_tokens == 2 * new_tokens


@pytest.mark.parametrize("position", [0, 4, 13])
def test_a_stop_token_is_kept_and_ends_its_sequence(method, position):
    stop = models.expected()[1][position]
    result = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, stop=[stop])
    for row, whole in zip(result.tokens, models.expected(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert row == whole[:end]
    assert result.stats.new_tokens == sum(map(len, result.tokens))


def test_any_of_several_stop_tokens(method):
    stop = {models.expected()[0][6], models.expected()[1][3]}
    result = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, stop=tuple(stop))
    for row, whole in zip(result.tokens, models.expected(), strict=True):
        ends = [position for position, token in enumerate(whole) if token in stop]
        assert row == whole[: ends[0] + 1]


def test_statistics_follow_their_definitions(method):
    infos = by_hand(method)
    stats = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).stats
    emitted = np.stack([info.num_emitted for info in infos])
    working = emitted > 0
    needed = working & (np.cumsum(emitted, axis=0) < models.NEW_TOKENS)
    accepted, verified = (
        np.stack([getattr(info, f"num_{what}") for info in infos]) for what in ("accepted", "verified")
    )
    reused = np.stack([np.zeros_like(working[0]) if info.reused is None else info.reused for info in infos])
    assert emitted.sum(axis=0).tolist() == [models.NEW_TOKENS] * 2
    assert stats.steps == working.sum()
    assert stats.new_tokens == emitted.sum()
    assert stats.accepted == accepted[working].sum()
    assert stats.needed == needed.sum()
    assert stats.reused == reused[needed].sum()
    assert stats.verified == verified[working].sum()
    assert stats.accepted_length == pytest.approx(verified[working].mean())
    assert stats.reuse_rate == pytest.approx(reused[needed].mean())
    seconds = stats.prefill_seconds + stats.decode_seconds
    assert seconds > 0
    assert stats.tokens_per_second == pytest.approx(stats.new_tokens / seconds)


@pytest.mark.parametrize(
    ("new_tokens", "stop"), [(1, []), (2, []), (5, []), (14, []), (14, [4]), (14, [8]), (14, [4, 8])]
)
def test_every_new_token_was_drafted_or_is_the_targets_own(method, new_tokens, stop):
    """Each step has one token of the target's own, which the end of a sequence may cut off."""
    result = jaxspec.generate(method, models.PROMPTS, new_tokens, stop=stop)
    stats, own = result.stats, result.stats.new_tokens - result.stats.accepted
    assert stats.new_tokens == sum(map(len, result.tokens))
    assert stats.steps - len(result.tokens) <= own <= stats.steps
    assert 0 <= stats.accepted <= stats.verified <= method.window * stats.steps
    assert stats.needed <= stats.steps - len(result.tokens)
    assert 0 <= stats.reused <= stats.needed
    assert stats.accepted_length == stats.verified / stats.steps


@pytest.mark.parametrize("build", [models.speculative, models.mirror])
def test_drafted_tokens_after_the_end_are_verified_but_not_accepted(build):
    """A draft that is always right, whose first window of three is cut off in its middle."""
    model = own_models.bigram()
    method = (
        build(3, exit_layer=1, target=model, draft=model)
        if build is models.mirror
        else build(3, target=model, draft=model)
    )
    first = jaxspec.generate(jaxspec.autoregressive(model), [[1]], 4).tokens[0]
    position = next(position for position in (1, 2) if first[position] not in first[:position])
    calls = {"a token": (1, []), "two": (2, []), "a stop token": (14, [first[position]])}
    for what, (new_tokens, stop) in calls.items():
        result = jaxspec.generate(method, [[1]], new_tokens, stop=stop)
        stats = result.stats
        assert stats.accepted == stats.new_tokens == len(result.tokens[0]) <= 3, what
        assert (stats.verified, stats.steps, stats.accepted_length) == (3, 1, 3.0), what


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
