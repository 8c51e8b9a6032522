"""A table of n-grams: what a target most often wrote after its last tokens, as a draft without a forward pass.

It is counted once, in texts of the target (``ngram_table``), and drafts together with what followed the last tokens
when they were in the text itself: at every place the candidate of the larger share is taken.

Source: earlier answers as a draft, REST (He et al., arXiv 2311.08252) and SuffixDecoding (Oliaro et al., arXiv
2411.04975); absolute discounting, Ney, Essen and Kneser (1994).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.base import Draft
from jaxspec.drafts.ngram import CommittedText, NGramDrafter, continuation, sizes_of
from jaxspec.models.base import Array, Network, Params
from jaxspec.text.prompts import Continued
from jaxspec.verify.sampling import NOTHING

#: n of the n-grams that are counted.
COUNTED = (4, 3, 2, 1)
#: From n, to the share of the places where what followed an n-gram in the same text follows it again. Like ``UNSEEN``
#: and ``DISCOUNT`` from answers of SmolLM2-135M-Instruct to 80 prompts that were not counted.
REPEATED = {4: 0.8, 3: 0.6, 2: 0.5, 1: 0.2}
#: d, by which counts are lowered.
DISCOUNT = 0.5
#: From n, to how many more occurrences the total of an n-gram is taken to have, for what did not follow it yet.
UNSEEN = {1: 2.8, 2: 1.6, 3: 0.7, 4: 0.2}
#: Places of a row of the table, which is found by a hash.
PLACES = 8
#: Expected accepted tokens below which a window is left empty, as verifying it would cost more than it brings: a pass
#: over a window costs 1.4 times one over a token on two CPU cores. Anything from 0.4 to 0.7 is as good there.
LEAST = 0.4
#: Least probability of a token to be accepted.
LEAST_CHANCE = 0.2


class Entries(NamedTuple):
    """Rows of a table: the hash of an n-gram, the token that most often followed it, and its share, all [M]."""

    keys: np.ndarray
    tokens: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class TableDrafter(NGramDrafter):
    """Drafts of a table of n-grams and of the text itself; ``sizes`` are those looked up in the text.

    Attributes:
        counted: n of the table, longest first.
        least: expected accepted tokens below which a window is left empty.
    """

    counted: tuple[int, ...] = COUNTED
    least: float = LEAST

    def for_target(self, target: Network) -> "TableDrafter":
        """Return this drafter.

        Raises:
            ValueError: the table was counted over another vocabulary.
        """
        if self.vocab_size != target.config.vocab_size:
            raise ValueError(
                f"expected a table over the {target.config.vocab_size} tokens of the target, got {self.vocab_size}; "
                "count one in this target's answers (train draft --kind ngram)"
            )
        return self

    def following(self, params: Params, text: CommittedText, count: int) -> Array:
        """Return the likely next tokens [B, ``count``]; −1 where none is known, or too few are expected to be accepted.

        With s_i the share of token i, token k is accepted with probability Π_{i≤k} s_i; their sum is the expected
        number of accepted tokens. A token with less than ``LEAST_CHANCE`` is left out, and those behind it.
        """
        tokens, chances, chance = [], [], jnp.ones(text.position.shape)
        for _ in range(count):
            token, share = self._next(params, text)
            chance = chance * share
            tokens.append(jnp.where(chance >= LEAST_CHANCE, token, NOTHING))
            chances.append(chance)
            text = text.with_tokens(jnp.maximum(token, 0)[:, None], jnp.ones_like(text.position))
        expected = sum(chances[1:], chances[0])[:, None]
        return jnp.where(expected >= self.least, jnp.stack(tokens, axis=1), NOTHING)

    def _next(self, params: Params, text: CommittedText) -> tuple[Array, Array]:
        """Return the likely next token of each text and its share: [B] each; the share is 0 where none is known."""
        longest = max(*self.counted, *self.sizes)
        back = text.position[:, None] - jnp.arange(longest)[None, ::-1]
        recent = jnp.where(back >= 0, jnp.take_along_axis(text.tokens, jnp.maximum(back, 0), axis=1), NOTHING)
        best, largest = counted_next(params, recent, self.counted)
        for size in self.sizes:
            token = continuation(text, (size,), 1)[:, 0]
            share = jnp.where(token >= 0, REPEATED.get(size, REPEATED[4]), 0.0)
            best, largest = jnp.where(share > largest, token, best), jnp.maximum(share, largest)
        return best, largest


def counted_next(params: Params, recent: Array, sizes: Sequence[int]) -> tuple[Array, Array]:
    """Return what most often followed the last tokens of ``recent`` [B, N], and its share: [B] each.

    The longest n-gram that was counted decides; −1 and 0 where none was.
    """
    token, share = jnp.full(len(recent), NOTHING), jnp.zeros(len(recent))
    for size in sorted(sizes):
        keys = hashed(recent[:, -size:])
        rows = keys & jnp.uint32(len(params["keys"]) - 1)
        same = (params["keys"][rows] == keys[:, None]) & (recent[:, -size] >= 0)[:, None]
        at, known = jnp.argmax(same, axis=1), jnp.any(same, axis=1)
        token = jnp.where(known, params["tokens"][rows, at], token)
        share = jnp.where(known, params["shares"][rows, at], share)
    return token, share


def hashed(grams: Any) -> Any:
    """Return hashes of n-grams [M, n], uint32 [M], never 0: the multiplicative hash of FNV-1a with a final mixing."""
    code = jnp if isinstance(grams, Array) else np
    keys = code.full(grams.shape[:1], 2166136261 + grams.shape[1], np.uint32)
    for column in range(grams.shape[1]):
        keys = (keys ^ grams[:, column].astype(np.uint32)) * np.uint32(16777619)
    keys = (keys ^ (keys >> np.uint32(15))) * np.uint32(2246822519)
    return code.maximum(keys ^ (keys >> np.uint32(13)), np.uint32(1))


def ngram_table(
    texts: Continued,
    vocab_size: int,
    sizes: Sequence[int] = COUNTED,
    *,
    repeated: Sequence[int] = tuple(REPEATED),
    least: float = LEAST,
) -> Draft:
    """Count what a target writes after every n-gram, and return it as a draft without a forward pass.

    The share of the token that most often followed an n-gram, c of N times, is (c − ½)/(N + k_n), k_n ``UNSEEN``. The
    table takes 24 to 48 bytes an n-gram.

    Args:
        texts: prompts with the target's answers, which alone are counted; the last tokens of a prompt begin n-grams.
        vocab_size: of the target.
        sizes: n of the n-grams that are counted.
        repeated: n of the n-grams that are looked up in the text itself.
        least: expected accepted tokens below which the target takes a step of plain decoding.

    Raises:
        ValueError: a size below 1, or no answer.
    """
    counted = tuple(sorted(sizes_of(sizes), reverse=True))
    if not (texts.answers >= 0).any():
        raise ValueError("expected at least one answer of the target, got none; pass Continued texts")
    parts = [_counts(texts, size) for size in counted]
    entries = Entries(*(np.concatenate(column) for column in zip(*(part[0] for part in parts), strict=True)))
    params = _placed(entries, np.concatenate([part[1] for part in parts]))
    return Draft(TableDrafter(sizes_of(repeated), vocab_size, counted, least), params)


def _placed(entries: Entries, counts: np.ndarray) -> Params:
    """Return the table [S, PLACES], with half of its places empty at least; of a full row the rarest are left out."""
    size = 1 << max(0, int(2 * len(counts) / PLACES - 1)).bit_length()
    rows = entries.keys & np.uint32(size - 1)
    order = np.lexsort((-counts, rows))
    starts = np.searchsorted(rows[order], np.arange(size))
    place = np.arange(len(order)) - starts[rows[order]]
    order, place = order[place < PLACES], place[place < PLACES]
    params = {name: np.zeros((size, PLACES), column.dtype) for name, column in entries._asdict().items()}
    for name, column in entries._asdict().items():
        params[name][rows[order], place] = column[order]
    return params


def _counts(texts: Continued, size: int) -> tuple[Entries, np.ndarray]:
    """Return the n-grams of one size with what most often followed, and how often each occurred."""
    tokens = texts.tokens
    rows, ends = np.nonzero(texts.answers >= 0)
    rows, ends = rows[ends >= size], ends[ends >= size]
    seen = np.stack([tokens[rows, ends - back] for back in range(size, -1, -1)], axis=1)
    pairs, counts = np.unique(seen, axis=0, return_counts=True)
    grams, first = np.unique(pairs[:, :-1], axis=0, return_index=True)  # pairs are sorted by n-gram
    totals = np.add.reduceat(counts, first) if len(first) else counts
    order = np.lexsort((counts, np.repeat(np.arange(len(first)), np.diff([*first, len(pairs)]))))
    best = order[np.append(first[1:], len(pairs)) - 1]  # the largest count of each n-gram
    shares = ((counts[best] - DISCOUNT) / (totals + UNSEEN.get(size, UNSEEN[4]))).astype(np.float32)
    return Entries(hashed(grams), pairs[best, -1].astype(np.int32), shares), totals
