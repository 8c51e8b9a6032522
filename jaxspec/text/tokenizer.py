"""Tokenizers of the ``tokenizers`` library: single characters, or byte-pair encoding."""

import json
from collections.abc import Iterable

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxspec.text._text import unlimited

UNKNOWN = "\ufffd"


def train_tokenizer(texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Train a tokenizer on texts: single characters, or with ``vocab_size`` byte-pair encoding of that many tokens.

    Characters that no text has become one unknown token. Decoding joins the tokens.

    Raises:
        ValueError: ``vocab_size`` is below the number of different characters + 1.
    """
    texts = list(texts)
    alphabet = [UNKNOWN, *sorted(set("".join(texts)))]
    if vocab_size is not None and vocab_size < len(alphabet):
        raise ValueError(f"expected vocab_size >= {len(alphabet)} (characters and unknown), got {vocab_size}")
    tokenizer = _characters(alphabet) if vocab_size is None else _merges(texts, alphabet, vocab_size)
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _characters(alphabet: list[str]) -> Tokenizer:
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return tokenizer


def _merges(texts: list[str], alphabet: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s?\w+|\s+(?!\S)|\s|[^\s\w]+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[UNKNOWN], initial_alphabet=alphabet[1:], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    plain = json.loads(tokenizer.to_str()) | {"added_tokens": []}  # decoding omits special tokens
    return Tokenizer.from_str(json.dumps(plain))


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the token ids [T] int32 of the whole text, without truncation or padding."""
    # Not `encode`, which also returns offsets and takes twice as long.
    (encoding,) = unlimited(tokenizer).encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(encoding.ids, np.int32)
