"""Kind and sizes of a fresh draft of any kind, with the vocabulary of a target's frequent tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxspec.drafts.base import Draft
from jaxspec.drafts.fresh import frequent_tokens, init_draft
from jaxspec.drafts.small import small_draft
from jaxspec.models.base import Model

DraftKind = Literal["eagle3", "eagle", "medusa", "hydra", "hydra++", "plain"]
"""Kinds of drafts that are made of their target."""

#: Tokens of a vocabulary from which on a head scores the most frequent ones alone, and how many.
LARGE, FREQUENT = 16_384, 8_192


@dataclass(frozen=True)
class DraftSizes:
    """Kind and sizes of a fresh draft.

    Attributes:
        kind: eagle3, eagle, medusa, hydra and hydra++ read hidden states; plain is a language model of the target's
            embedding, head and few layers. None: no fresh draft.
        layers: how many a plain draft has; default: as many as cost a tenth of the target's pass.
        from_layers: the target's layers that a plain draft starts from; default: random numbers.
        taps: layers before which eagle3 reads (others: one); default: 2, L//2, L−3 (others: the final hidden state).
        vocabulary: number of tokens that a draft knows, the most frequent ones of the target's answers; default: 8,192
            of more than 16,384, otherwise all.
        heads: of medusa and hydra.
    """

    kind: DraftKind | None = None
    layers: int | None = None
    from_layers: tuple[int, ...] | None = None
    taps: tuple[int, ...] | None = None
    vocabulary: int | None = None
    heads: int = 4


def known_tokens(vocabulary: int | None, vocab_size: int) -> int:
    """Return how many tokens of a vocabulary a draft or an exit knows, by default or by choice."""
    return vocabulary or (FREQUENT if vocab_size > LARGE else vocab_size)


def fresh_draft(target: Model, sizes: DraftSizes, answers: Callable[[], np.ndarray]) -> Model | Draft:
    """Return a draft to be trained.

    Args:
        target: is not changed.
        sizes: with a kind.
        answers: returns tokens that the target wrote, [n, T], −1 for others; called only for a smaller vocabulary.

    Raises:
        ValueError: no kind, or sizes that do not fit the target.
    """
    if sizes.kind is None:
        raise ValueError("expected a kind of draft, got none; pass DraftSizes(kind='eagle3')")
    size = target.network.config.vocab_size
    count = known_tokens(sizes.vocabulary, size)
    ids = None if count >= size else frequent_tokens(answers(), count, size)
    if sizes.kind == "plain":
        return small_draft(target, num_layers=sizes.layers, from_layers=sizes.from_layers, vocabulary=ids)
    return init_draft(sizes.kind, target, taps=sizes.taps, vocabulary=ids, heads=sizes.heads)
