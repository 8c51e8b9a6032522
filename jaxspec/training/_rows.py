"""Batches of texts: windows of rows, with what is known at each token."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxspec.text.prompts import Continued, behind, lengths
from jaxspec.training._hidden import Hidden


def batches(arrays: Sequence[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield parts of arrays [n, ...] of ``size`` rows; the last one is smaller."""
    for start in range(0, len(arrays[0]), size):
        yield tuple(array[start : start + size] for array in arrays)


class TextRows(NamedTuple):
    """Texts to train on, and the target's streams along them.

    Attributes:
        texts: with their prompts.
        streams: of ``stored_hidden``; None: the target runs again at every step.
        length: tokens of a row in a batch; longer texts are cut to a window of so many.
    """

    texts: Continued
    streams: Hidden | None
    length: int

    def batch(self, size: int, seed: int, step: int) -> dict[str, np.ndarray]:
        """Draw rows, a function of (seed, step) alone: ``tokens``, ``mask`` of those behind prompts, ``hidden``."""
        random, tokens = np.random.default_rng((seed, step)), self.texts.tokens
        index = random.integers(0, len(tokens), size)
        rows, answers = tokens[index], behind(self.texts.starts[index], (size, tokens.shape[1]))
        firsts = np.zeros(size, int)
        if self.length < rows.shape[1]:
            firsts = random.integers(0, np.maximum(lengths(rows) - self.length, 0) + 1)
        at = firsts[:, None] + np.arange(min(self.length, rows.shape[1]))[None]
        batch = {"tokens": np.take_along_axis(rows, at, 1), "mask": np.take_along_axis(answers, at, 1)}
        return batch | self.hidden(index, firsts)

    def hidden(self, index: np.ndarray, firsts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return ``hidden`` [S, B, T, D] along windows of chosen texts; nothing if it is not known."""
        if self.streams is None:
            return {}
        length = min(self.length, self.texts.tokens.shape[1])
        starts = np.zeros(len(index), int) if firsts is None else firsts
        parts = [self.streams.window(row, first, length) for row, first in zip(index, starts, strict=True)]
        return {"hidden": np.stack(parts, axis=1)}
