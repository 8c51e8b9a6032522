"""Samples of a next-character classifier from raw text."""

from collections.abc import Iterable

import numpy as np


def alphabet_of(texts: Iterable[str]) -> str:
    """Return every character of the texts once, in order of code points."""
    return "".join(sorted(set().union(*map(set, texts))))


def next_characters(text: str, alphabet: str, context: int) -> dict[str, np.ndarray]:
    """Cut a text into windows: "x", the last characters, int [n, context], and "y", the one that follows, int32 [n].

    Args:
        text: a text of n + context characters, n ≥ 1.
        alphabet: the characters, in order of code points; numbers are positions in it.
        context: characters that the prediction sees.

    Raises:
        ValueError: a text without a single sample, or with a character that is not in the alphabet.
    """
    if not 1 <= context < len(text):
        raise ValueError(f"expected a text longer than its context ≥ 1, got {len(text)} characters for {context}")
    if not alphabet:
        raise ValueError("expected an alphabet of at least one character, got none")
    codes, letters = _code_points(text), _code_points(alphabet)
    numbers = np.minimum(np.searchsorted(letters, codes), len(letters) - 1)
    if (unknown := letters[numbers] != codes).any():
        raise ValueError(f"expected characters of {alphabet!r}, got {text[int(unknown.argmax())]!r}; add it or drop it")
    windows = np.lib.stride_tricks.sliding_window_view(numbers, context + 1)
    smallest = np.min_scalar_type(len(alphabet) - 1)
    return {"x": windows[:, :-1].astype(smallest), "y": windows[:, -1].astype(np.int32)}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
