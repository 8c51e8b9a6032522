"""Drafts without a model along recorded texts, without decoding: what each step would find, and how much is right."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxspec.drafts import Draft
from jaxspec.drafts.ngram import CommittedText, NGramDrafter, verified_width
from jaxspec.models.base import Array, Params

#: Texts are padded to a multiple of so many tokens, so that few programs are compiled.
BUCKET = 128


class LookupSteps(NamedTuple):
    """Every step of greedy decoding with a draft without a model along texts, n of them.

    Attributes:
        accepted: A: [n].
        widths: places that were verified; where there were none, the step is one of plain decoding: [n].
    """

    accepted: np.ndarray
    widths: np.ndarray

    @property
    def accepted_length(self) -> float:
        """E[A]."""
        return float(np.mean(self.accepted))

    @property
    def empty_rate(self) -> float:
        """Share of the steps that find nothing."""
        return float(np.mean(self.widths == 0))

    @property
    def shares(self) -> dict[int, float]:
        """Share of the steps by width."""
        return {int(width): float(np.mean(self.widths == width)) for width in np.unique(self.widths)}


def lookup_steps(
    draft: Draft, texts: Sequence[Sequence[int]], prompt_lengths: Sequence[int], window: int
) -> LookupSteps:
    """Return the steps of ``jaxspec.speculative`` with such a draft along texts, without the last γ tokens of each.

    Args:
        draft: prompt lookup or a table of n-grams.
        texts: prompts with the target's greedy continuations.
        prompt_lengths: of the prompts in ``texts``.
        window: γ.

    Raises:
        ValueError: no text is longer than a window.
    """
    steps = [
        step
        for text, length in zip(texts, prompt_lengths, strict=True)
        for step in _steps(draft, np.asarray(text, np.int32), length, window)
    ]
    if not steps:
        raise ValueError(f"expected more than {window} tokens after a prompt, got none; continue them further")
    return LookupSteps(*(np.asarray(column) for column in zip(*steps, strict=True)))


def _steps(draft: Draft, text: np.ndarray, length: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield A, and how many places were verified, of every step of one text."""
    place, end = length - 1, len(text) - 1 - window
    padded = np.pad(text, (0, -(len(text) + window) % BUCKET + window))
    while place < end:
        drafted = np.asarray(_drafted(draft.drafter, window, draft.params, padded, np.int32(place)))
        right = drafted == text[place + 1 : place + 1 + window]
        accepted = window if right.all() else int(np.argmin(right))
        yield accepted, verified_width(drafted)
        place += accepted + 1


@partial(jax.jit, static_argnums=(0, 1))
def _drafted(drafter: NGramDrafter, window: int, params: Params, text: Array, place: Array) -> Array:
    """Return the tokens [γ] that are drafted after a place of a text."""
    return drafter.following(params, CommittedText(text[None], place[None]), window)[0]
