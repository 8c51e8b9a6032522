"""Tokenizers: the embedded text survives a round trip, unknown characters become one token."""

from functools import cache

import numpy as np
import pytest

from jaxspec.federated import read_roles
from jaxspec.text.tokenizer import UNKNOWN, encode, train_tokenizer


@cache
def texts():
    return tuple(role.text for role in read_roles(min_chars=20_000))


@cache
def alphabet():
    return sorted({character for role in read_roles() for character in set(role.text)})


@cache
def tokenizer(vocab_size):
    return train_tokenizer(["".join(alphabet()), *texts()[:8]], vocab_size)


@pytest.mark.parametrize("vocab_size", [None, 160])
def test_round_trip_of_the_text_of_all_roles(vocab_size):
    for text in ["".join(alphabet()), *texts()[:3], "  two  spaces\n\n and lines\n"]:
        assert tokenizer(vocab_size).decode(encode(tokenizer(vocab_size), text).tolist()) == text


@pytest.mark.parametrize("vocab_size", [None, 160])
def test_ids_are_int32_below_the_size(vocab_size):
    ids = encode(tokenizer(vocab_size), texts()[0])
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ids.min() >= 0
    assert ids.max() < tokenizer(vocab_size).get_vocab_size()


def test_one_token_a_character():
    assert tokenizer(None).get_vocab_size() == len(alphabet()) + 1
    assert len(encode(tokenizer(None), texts()[0])) == len(texts()[0])


def test_merges_fill_the_vocabulary_and_shorten_the_text():
    assert tokenizer(160).get_vocab_size() == 160
    assert len(encode(tokenizer(160), texts()[0])) < 0.8 * len(texts()[0])


@pytest.mark.parametrize("vocab_size", [None, 160])
def test_unknown_characters(vocab_size):
    ids = encode(tokenizer(vocab_size), "a€b漢c")
    unknown = tokenizer(vocab_size).token_to_id(UNKNOWN)
    assert unknown == 0
    assert (ids == unknown).tolist() == [False, True, False, True, False]
    assert tokenizer(vocab_size).decode(ids.tolist()) == f"a{UNKNOWN}b{UNKNOWN}c"


def test_a_vocabulary_smaller_than_the_alphabet():
    with pytest.raises(ValueError, match=r"expected vocab_size >= 4 \(characters and unknown\), got 3"):
        train_tokenizer(["abc"], 3)


def test_training_is_repeatable():
    again = train_tokenizer(["".join(alphabet()), *texts()[:8]], 160)
    assert again.get_vocab() == tokenizer(160).get_vocab()
