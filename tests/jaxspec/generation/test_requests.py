"""From arguments to arrays: settings repeated over a batch, seeds, buckets, and what a second call compiles."""

from dataclasses import replace

import numpy as np
import pytest

import jaxspec
from jaxspec import Sampling
from jaxspec.generation.requests import bucket, cache_rows, encoded, request_of, text_of
from jaxspec.text import Text
from jaxspec.text.tokenizer import train_tokenizer
from tests.support.jaxspec import models

#: Settings of three sequences.
LISTS = {
    "temperature": [0.5, 0.0, 1.0],
    "top_k": [0, 5, 1],
    "top_p": [1.0, 0.5, 0.9],
    "min_p": [0.0, 1.0, 0.1],
    "repetition_penalty": [1.0, 0.9, 1.3],
    "seed": [9, 9, 4],
}


@pytest.fixture(scope="module")
def method():
    return jaxspec.autoregressive(models.target())


def request(method, prompts, max_new_tokens=8, **settings):
    return request_of(encoded(prompts, None), method, max_new_tokens, Sampling(**settings))


@pytest.mark.parametrize("name", [name for name in LISTS if name != "seed"])
def test_one_number_holds_for_all_sequences(name):
    assert Sampling(**{name: 1}).arrays(3)[name].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_one_number_for_each_sequence(name):
    assert Sampling(**{name: LISTS[name]}).arrays(3)[name].tolist() == LISTS[name]
    with pytest.raises(ValueError, match=rf"expected one {name} or 4, one for each prompt, got shape \(3,\)"):
        Sampling(**{name: LISTS[name]}).arrays(4)


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [
        (0, [0, 1, 2]),
        (7, [7, 8, 9]),
        ([7, 7, 3], [7, 7, 3]),
        (np.uint32(5), [5, 6, 7]),
        (2**32 - 2, [2**32 - 2, 2**32 - 1, 0]),
    ],
)
def test_a_single_seed_is_counted_up(seed, seeds, method):
    assert Sampling(seed=seed).arrays(3)["seed"].tolist() == seeds
    batch, _ = request(method, [[1], [2], [3]], seed=seed, temperature=1.0)
    assert batch.sampling.seed.tolist() == seeds
    assert batch.sampling.seed.dtype == np.uint32


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, 32), (31, 32), (32, 32), (33, 64), (224, 224), (225, 256), (256, 256), (257, 512), (512, 512), (513, 768)],
)
def test_lengths_share_buckets(length, size):
    assert bucket(length) == size


@pytest.mark.parametrize(
    ("needed", "rows"),
    [(1, 64), (64, 64), (65, 128), (257, 512), (1025, 2048), (2048, 2048), (2049, 4096), (4097, 6144), (8192, 8192)],
)
def test_texts_of_many_lengths_share_few_caches(needed, rows):
    assert cache_rows(needed) == rows


def test_prompts_are_padded_to_the_bucket_of_the_longest(method):
    prompts = [[1, 2, 3], list(range(10)) * 4]
    batch, capacity = request(method, prompts, max_new_tokens=[5, 9])
    assert batch.tokens.shape == (2, 64)
    for row, length, prompt in zip(batch.tokens, batch.lengths, prompts, strict=True):
        assert length == len(prompt)
        assert row[:length].tolist() == prompt
        assert not row[length:].any()
    assert batch.max_new_tokens.tolist() == [5, 9]
    assert capacity == 128
    assert {leaf.dtype for leaf in (batch.tokens, batch.lengths, batch.max_new_tokens)} == {np.dtype("int32")}


@pytest.mark.parametrize("window", [1, 7])
def test_the_cache_has_room_for_two_windows(window):
    _, capacity = request(models.speculative(window), [[1]], max_new_tokens=1000)
    assert capacity >= 32 + 1000 + 2 * (window + 1)


def test_tokens_seen_are_kept_only_where_repetition_is_penalised(method):
    prompts = [[1, 5, 1], [10]]
    assert request(method, prompts)[0].seen.marks is None
    batch, _ = request(method, prompts, repetition_penalty=[1.0, 1.3])
    assert [np.flatnonzero(row).tolist() for row in batch.seen.marks] == [[1, 5], [10]]


@pytest.mark.parametrize(("count", "size"), [(1, 4), (4, 4), (5, 8)])
def test_a_batch_is_filled_up_to_whole_groups(method, count, size):
    batch, _ = request(method._replace(groups=4), [[3, index] for index in range(count)], repetition_penalty=1.5)
    for leaf in (*batch[:3], *batch.sampling, batch.seen.marks):
        assert len(leaf) == size
    assert batch.tokens[:count, :2].tolist() == [[3, index] for index in range(count)]
    np.testing.assert_array_equal(batch.tokens[count:], np.broadcast_to(batch.tokens[count - 1], (size - count, 32)))


def test_a_tokenizer_passed_goes_before_the_targets_own(method):
    own, passed = Text.of(train_tokenizer(["ab"])), train_tokenizer(["abcd"])
    carrying = method._replace(text=own)
    assert text_of(method, None) is None
    assert text_of(carrying, None) is own
    assert text_of(carrying, passed).tokenizer is passed
    assert text_of(method, own) is own


def test_more_tokens_than_learned_positions(method):
    limited = method._replace(max_length=20)
    assert len(jaxspec.generate(limited, [[1] * 16], 4).tokens[0]) == 4
    with pytest.raises(ValueError, match=r"fit the cache of 20, got 17 \+ 4"):
        jaxspec.generate(limited, [[1] * 17], 4)


def test_every_sequence_has_its_own_settings(method):
    """In one batch as alone: greedy, drawn, filtered, penalised; each as long as it may be."""
    new_tokens = [14, 9, 12, 5]
    settings = {
        "temperature": [0.0, 1.5, 1.5, 0.0],
        "top_k": [0, 0, 3, 0],
        "top_p": [1.0, 1.0, 0.8, 1.0],
        "min_p": [0.0, 0.1, 0.0, 0.0],
        "repetition_penalty": [1.0, 1.0, 1.0, 3.0],
        "seed": [1, 2, 3, 4],
    }
    prompts = [models.PROMPTS[index % 2] for index in range(4)]
    together = jaxspec.generate(method, prompts, new_tokens, sampling=Sampling(**settings))
    for index, prompt in enumerate(prompts):
        # Alone, but in a batch of the same size: the program is the same, the neighbours are not.
        own = Sampling(**{name: [values[index]] * 4 for name, values in settings.items()})
        alone = jaxspec.generate(method, [prompt] * 4, new_tokens[index], sampling=own)
        assert together.tokens[index] == alone.tokens[0]
        assert len(together.tokens[index]) == new_tokens[index]
    assert together.tokens[0] == models.expected()[0]
    assert together.tokens[3] != models.expected()[1][:5], "the penalty has changed something"


def test_equal_prompts_differ_by_their_seeds_and_repeat_themselves(method):
    run = lambda seed: jaxspec.generate(method, [[1, 5, 3]] * 4, 14, sampling=Sampling(2.0, seed=seed)).tokens  # noqa: E731
    first = run(5)
    assert len(set(map(tuple, first))) == 4
    assert first == run(5) == run([5, 6, 7, 8])
    assert run([8, 5, 5, 6]) == [first[3], first[0], first[0], first[1]]


@pytest.mark.parametrize(
    "build",
    [
        jaxspec.autoregressive,
        pytest.param(lambda target: models.speculative(2, target=target), marks=pytest.mark.slow),
        pytest.param(lambda target: models.mirror(2, exit_layer=1, target=target), marks=pytest.mark.slow),
    ],
    ids=["autoregressive", "speculative", "mirror"],
)
def test_only_the_first_call_in_a_bucket_compiles(build):
    """For any prompts, temperatures, filters and seeds; a greedy batch has programs of its own."""
    model = models.stranger()
    method = build(model._replace(network=replace(model.network)))
    prompts = [[1, 2, 3], [4] * 20]
    first = jaxspec.generate(method, prompts, 6)
    again = jaxspec.generate(method, prompts, 6)
    drawn = jaxspec.generate(method, prompts, 6, temperature=0.7)
    other = jaxspec.generate(method, [[7] * 32, [3]], [9, 2], sampling=Sampling([0.9, 0.0], top_k=3, top_p=0.7, seed=4))
    assert min(first.stats.compiled, drawn.stats.compiled) > 0
    assert again.tokens == first.tokens
    assert (again.stats.compiled, other.stats.compiled) == (0, 0)
