"""Replayed prompt lookup against a real run, step by step, and as a setting of tune."""

from dataclasses import replace

import numpy as np
import pytest

import jaxspec
from jaxspec.analysis._grid import PLAIN, Grid
from jaxspec.analysis._lookup import LookupSteps, lookup_steps
from jaxspec.analysis._predict import Tuned, predict, ranked
from jaxspec.analysis._tune import tune
from jaxspec.analysis.timing import Primitives
from jaxspec.drafts import ngram_table, prompt_lookup
from jaxspec.generation import continued
from jaxspec.methods import DecodeSpec
from jaxspec.text import Text
from tests.support.jaxspec import models, pairs

NEW, WINDOW, SIZES = 40, 3, (3, 2, 1)
TIMES = Primitives(10.0, lookup={"lookup": {0: 10.5, 1: 11.0, 3: 12.0}})


def accepted_in_a_run(method, prompts):
    """A of every step of a real run, one list per sequence."""
    state, runs = method.init(models.request(prompts, NEW), 32 + NEW + 2 * (WINDOW + 1)), [[] for _ in prompts]
    while True:
        state, info = method.step(state)
        info = info.read()
        if not info.num_emitted.any():
            return runs
        for run, emitted, accepted in zip(runs, info.num_emitted, info.num_accepted, strict=True):
            run += [int(accepted)] * bool(emitted)


@pytest.mark.parametrize("kind", ["lookup", "table"])
def test_every_step_is_that_of_a_run(kind):
    prompts = [prompt[:5] for prompt in pairs.PROMPTS[:6]]
    new = jaxspec.generate(jaxspec.autoregressive(models.target()), prompts, NEW).tokens
    draft = prompt_lookup(SIZES) if kind == "lookup" else table()
    real = accepted_in_a_run(jaxspec.speculative(models.target(), draft, WINDOW), prompts)
    found = [
        lookup_steps(draft, [[*prompt, *more]], [len(prompt)], WINDOW)
        for prompt, more in zip(prompts, new, strict=True)
    ]
    assert sum(steps.accepted.sum() for steps in found) > 0
    for run, steps in zip(real, found, strict=True):
        assert steps.accepted.tolist() == run[: len(steps.accepted)]
        assert len(steps.accepted) >= len(run) - WINDOW


def table():
    """Of answers to other prompts."""
    answers = continued(models.target(), [prompt[:3] for prompt in pairs.PROMPTS[6:]], NEW)
    return ngram_table(answers, models.VOCAB)


def test_a_table_is_a_setting_of_speculative_decoding():
    options = {"grid": Grid((1, 3)), "placement": models.meshes(), "new_tokens": models.NEW_TOKENS}
    tuned = tune(models.target(), table(), models.PROMPTS, **options)
    assert {row.spec.label for row in tuned.rows} == {"plain decoding", "prompt lookup", "speculative"}
    assert set(tuned.primitives.lookup) == {"lookup", "speculative"}
    drafted = next(row.spec for row in tuned.rows if row.spec.label == "speculative")
    assert jaxspec.generate(tuned.build(drafted), models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()


def test_steps_by_hand():
    """Nothing is behind 3 at first; 1 2 3 4 is then found again, and 5 after it is not."""
    steps = lookup_steps(prompt_lookup(SIZES), [[1, 2, 3, 4, 1, 2, 3, 5, 6]], [3], 1)
    assert steps.widths.tolist() == [0, 0, 1, 1]
    assert steps.accepted.tolist() == [0, 0, 1, 0]
    assert (steps.accepted_length, steps.empty_rate) == (0.25, 0.5)
    assert lookup_steps(prompt_lookup(2), [[1, 2, 1, 9, 9]], [3], 1).widths.tolist() == [0]
    with pytest.raises(ValueError, match="expected more than 7 tokens after a prompt, got none"):
        lookup_steps(prompt_lookup(SIZES), [[1, 2, 3]], [1], 7)


def test_a_step_that_finds_nothing_costs_a_plain_step():
    spec = DecodeSpec(3, sizes=(3, 2, 1))
    assert predict(TIMES, spec, 1.0, 0.25).step == pytest.approx(0.75 * 12.0 + 0.25 * 10.5)
    mixed = predict(TIMES, spec, 1.0, 0.5, {0: 0.5, 1: 0.3, 3: 0.2})
    assert mixed.step == pytest.approx(0.5 * 10.5 + 0.3 * 11.0 + 0.2 * 12.0)
    together = predict(replace(TIMES, batch=2), spec, 1.0, 0.25)
    assert together.step == pytest.approx(12.0 - 0.25**2 * 1.5)
    assert together.tokens_per_second == pytest.approx(2 * 2.0 / together.step)


@pytest.mark.parametrize(("right", "words"), [(2, "prompt lookup, window 3: "), (0, "Plain decoding is faster: of 2 ")])
def test_it_is_chosen_where_it_is_the_fastest(right, words):
    specs = [PLAIN, *Grid.lookups((1, 3))]
    looked_up = {
        ("lookup", window): LookupSteps(np.full(4, min(right, window)), np.full(4, window)) for window in (1, 3)
    }
    rows = ranked(TIMES, None, specs, looked_up)
    tuned = Tuned(rows, TIMES, lambda spec: spec.build(models.target()))
    assert str(tuned).startswith(words)
    assert str(tuned).endswith("by the cost model.")
    assert tuned.over(rows[0], "speculative") is None
    assert tuned.method.window == (3 if right else 0)
    assert jaxspec.generate(tuned.method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()


def stopping(token):
    return models.target()._replace(text=Text(stop=(token,)))


def test_without_a_draft_texts_end_at_stop_tokens():
    """Prompts whose answer is no longer than a window are left out."""
    first, second = models.expected()
    token = next(token for token in first if first.index(token) < second.index(token) - 1)
    window = first.index(token) + 1
    target, grid = stopping(token), Grid((1, window))
    tuned = tune(target, None, models.PROMPTS, grid=grid, placement=models.meshes(), new_tokens=models.NEW_TOKENS)
    assert (tuned.texts, tuned.left_out) == (1, 1)
    assert {row.spec.label for row in tuned.rows} == {"plain decoding", "prompt lookup"}
    assert {0, 1, window} <= set(tuned.primitives.lookup["lookup"])
    assert all(seconds > 0 for seconds in tuned.primitives.lookup["lookup"].values())
    with pytest.raises(ValueError, match="expected an answer of more than 4 tokens, the largest window, .*got 1 at"):
        tune(stopping(first[0]), None, models.PROMPTS[:1], grid=grid, new_tokens=models.NEW_TOKENS)


def test_settings_of_prompt_lookup():
    spec = DecodeSpec(2, sizes=(2, 1))
    assert (spec.method, str(spec)) == ("lookup", "lookup, window 2")
    assert spec != DecodeSpec(2)
    with pytest.raises(ValueError, match="expected sizes of n-grams without policy and tree"):
        DecodeSpec(2, jaxspec.candidates.none(), sizes=(1,))
