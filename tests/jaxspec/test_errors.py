"""Bad input is refused before any work starts, with what was expected, what came, and often the remedy."""

from dataclasses import replace

import numpy as np
import pytest

import jaxspec
from jaxspec import DecoderConfig, candidates
from tests.jaxspec import models


def other_vocabulary():
    return models.random_model(replace(models.DRAFT, vocab_size=12), 0)


def generate(prompts, max_new_tokens=4, **options):
    return jaxspec.generate(jaxspec.autoregressive(models.target()), prompts, max_new_tokens, **options)


#: What is done, and what the message must say.
TABLE = {
    "speculative window 0": (lambda: models.speculative(0), "expected window >= 1.*got 0"),
    "speculative window -2": (lambda: models.speculative(-2), "expected window >= 1.*got -2"),
    "mirror window 0": (lambda: models.mirror(window=0), "expected window >= 1.*got 0"),
    "no candidates": (lambda: models.mirror(num_candidates=0), "expected 1 <= num_candidates.*got 0"),
    "negative candidates": (lambda: models.mirror(num_candidates=-1), "expected 1 <= num_candidates.*got -1"),
    "more candidates than tokens": (lambda: models.mirror(num_candidates=11), "num_candidates < 11.*got 11"),
    "exit layer 0": (lambda: models.mirror(exit_layer=0), "expected 1 <= exit_layer <= 4.*got 0"),
    "exit layer N + 1": (lambda: models.mirror(exit_layer=5), "expected 1 <= exit_layer <= 4.*got 5"),
    "speculative vocabulary": (
        lambda: models.speculative(draft=other_vocabulary()),
        "expected target and draft over one vocabulary, got 11 and 12",
    ),
    "mirror vocabulary": (
        lambda: models.mirror(draft=other_vocabulary()),
        "expected target and draft over one vocabulary, got 11 and 12",
    ),
    "budget 0": (lambda: candidates.mirror(0), "expected a branch budget >= 1, got 0"),
    "no prompts": (lambda: generate([]), "expected at least one prompt, got none"),
    "an empty prompt": (lambda: generate([[1, 2], []]), r"prompt 1: expected at least one token, got shape \(0,\)"),
    "a nested prompt": (lambda: generate([[[1, 2]]]), r"prompt 0: expected .*got shape \(1, 2\)"),
    "a negative token": (lambda: generate([[1], [3, -1]]), r"prompt 1: expected token ids in \[0, 11\), got -1\.\.3"),
    "a token too large": (lambda: generate([[11]]), r"prompt 0: expected token ids in \[0, 11\), got 11"),
    "a prompt too long": (
        lambda: generate([[1], [1] * 61], max_length=64),
        r"prompt 1: expected .* fit the cache of 64, got 61 \+ 4",
    ),
    "no new tokens": (lambda: generate([[1]], 0), "expected max_new_tokens >= 1, got 0"),
    "a temperature": (lambda: generate([[1]], temperature=0.7), "expected temperature 0.*got 0.7"),
    "text without a tokenizer": (lambda: generate(["abc"]), "expected token ids, got text"),
}


@pytest.mark.parametrize(("act", "words"), TABLE.values(), ids=TABLE.keys())
def test_bad_input(act, words):
    with pytest.raises(ValueError, match=words):
        act()


@pytest.mark.parametrize(
    "name", ["vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_size", "hidden"]
)
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_below_one(name, value):
    with pytest.raises(ValueError, match=f"expected {name} >= 1, got {value}"):
        replace(models.TARGET, **{name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_kv_heads": 3}, "expected num_heads divisible by num_kv_heads, got 4 and 3"),
        ({"head_size": 5}, "expected an even head_size.*got 5"),
    ],
)
def test_sizes_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        replace(models.TARGET, **change)


def test_the_longest_prompt_that_fits_is_taken():
    prompt = [1, 4] * 30
    assert len(generate([prompt], max_length=64).tokens[0]) == 4


def test_integers_of_any_kind_are_taken():
    expected = generate([[1, 2, 3]]).tokens
    assert generate(np.array([[1, 2, 3]], np.uint8)).tokens == expected


def test_configurations_are_values():
    assert DecoderConfig(11, 16, 4, 4, 2, 4, 16) == models.TARGET
    assert hash(replace(models.TARGET)) == hash(models.TARGET)
