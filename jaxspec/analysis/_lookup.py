"""Prompt lookup along a recorded text, without decoding: what each step would find, and how much of it is right."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxspec.drafts.ngram import SIZES


class LookupSteps(NamedTuple):
    """Every step of greedy prompt lookup along texts, n of them.

    Attributes:
        accepted: A: [n].
        found: whether anything was looked up; where nothing was, the step is one of plain decoding: [n].
    """

    accepted: np.ndarray
    found: np.ndarray

    @property
    def accepted_length(self) -> float:
        """E[A]."""
        return float(np.mean(self.accepted))

    @property
    def empty_rate(self) -> float:
        """Share of the steps that find nothing."""
        return float(np.mean(~self.found))


def lookup_steps(
    texts: Sequence[Sequence[int]], prompt_lengths: Sequence[int], window: int, sizes: Sequence[int] = SIZES
) -> LookupSteps:
    """Return the steps of ``jaxspec.lookup`` along texts, without the last γ tokens of each.

    Args:
        texts: prompts with the target's greedy continuations.
        prompt_lengths: of the prompts in ``texts``.
        window: γ.
        sizes: n, in the order in which they are tried.

    Raises:
        ValueError: no text is longer than a window.
    """
    steps = [
        step
        for text, length in zip(texts, prompt_lengths, strict=True)
        for step in _steps(list(text), length, window, tuple(sizes))
    ]
    if not steps:
        raise ValueError(f"expected more than {window} tokens after a prompt, got none; continue them further")
    accepted, found = zip(*steps, strict=True)
    return LookupSteps(np.asarray(accepted), np.asarray(found))


def _steps(text: list[int], length: int, window: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, bool]]:
    """Yield A, and whether anything was found, of every step of one text."""
    latest: dict[tuple[int, ...], int] = {}
    read, last = 0, length - 1
    while last + window < len(text) - 1:
        for end in range(read, last):
            latest |= {tuple(text[end + 1 - size : end + 1]): end for size in sizes if size <= end + 1}
        read = last
        drafted = _looked_up(text[: last + 1], latest, window, sizes)
        right = [one == other for one, other in zip(drafted, text[last + 1 :], strict=False)]
        accepted = right.index(False) if False in right else len(right)
        yield accepted, bool(drafted)
        last += accepted + 1


def _looked_up(text: list[int], latest: dict[tuple[int, ...], int], window: int, sizes: tuple[int, ...]) -> list[int]:
    """Return at most γ tokens that followed the latest earlier occurrence of the last ones, up to the text's end."""
    for size in sizes:
        end = latest.get(tuple(text[-size:])) if size <= len(text) else None
        if end is not None:
            return text[end + 1 : end + 1 + window]
    return []
