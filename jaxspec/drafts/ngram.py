"""A draft without parameters: the tokens that followed when the last n-gram of the text occurred before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.drafts.base import Draft, Drafter
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Pending, Verification
from jaxspec.models.base import Array, Network, Params
from jaxspec.verify.message import Message, Roots
from jaxspec.verify.sampling import NOTHING
from jaxspec.verify.target import Request

#: n of the n-grams that ``jaxspec.lookup`` tries, in this order. One token alone is followed by the same too rarely to
#: pay for its verification where a pass over more tokens takes longer, as it does on a CPU.
SIZES = (3, 2)
#: Most tokens that are drafted where only the last token of the text occurred before: further ones are rarely right.
BEHIND_ONE = 2


class CommittedText(NamedTuple):
    """Committed text: ``tokens`` [B, S] up to and with ``position`` [B]; behind that anything."""

    tokens: Array
    position: Array

    def with_tokens(self, tokens: Array, count: Array) -> "CommittedText":
        """Add the first ``count`` [B] of ``tokens`` [B, T]."""
        added = jax.vmap(lambda old, new, start: jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=0))
        return CommittedText(added(self.tokens, tokens, self.position + 1), self.position + count)


def text_of(request: Request, capacity: int) -> CommittedText:
    """Return the prompts, with room for ``capacity`` tokens."""
    tokens = request.tokens
    return CommittedText(jnp.pad(tokens, ((0, 0), (0, capacity - tokens.shape[1]))), request.lengths - 1)


def committed(text: CommittedText, verified: Verification) -> CommittedText:
    """Return the text after a verdict."""
    assert verified.num_accepted is not None
    assert verified.next_token is not None
    window, accepted = verified.window, verified.num_accepted
    is_next = jnp.arange(window.shape[1] + 1)[None] == accepted[:, None]
    tokens = jnp.where(is_next, verified.next_token[:, None], jnp.pad(window, ((0, 0), (0, 1))))
    # The target's position: that of a sequence which has reached its limit stays where it is.
    return CommittedText(text.tokens, verified.position).with_tokens(tokens, accepted + 1)


def continuation(text: CommittedText, sizes: Sequence[int], count: int) -> Array:
    """Return the tokens [B, ``count``] that followed the latest earlier occurrence of the text's last tokens.

    Those of the first of ``sizes`` that occurs are taken, few where longer n-grams are new and one token alone occurs
    (``BEHIND_ONE``); −1 where none does, and behind the text's end.
    """
    last = len(sizes) > 1
    first, *rest = (
        _few(_followers(text, size, count)) if last and size == 1 else _followers(text, size, count) for size in sizes
    )
    for other in rest:
        first = jnp.where(first[:, :1] >= 0, first, other)
    return first


def _few(tokens: Array) -> Array:
    return jnp.where(jnp.arange(tokens.shape[1])[None] < BEHIND_ONE, tokens, NOTHING)


def verified_width(tokens: np.ndarray) -> int:
    """Return how many places of a window [B, γ] are verified: 0, 1, 3, 7, … or γ, as many as have a token at least."""
    drafted = int((tokens >= 0).sum(axis=-1).max(initial=0))
    return min((1 << drafted.bit_length()) - 1, tokens.shape[-1])


def verified_widths(window: int) -> tuple[int, ...]:
    """Return the widths that there are for windows of γ places."""
    return tuple(sorted({min((1 << power) - 1, window) for power in range(window.bit_length() + 1)}))


def sizes_of(size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of n-grams, in the order in which they are tried.

    Raises:
        ValueError: none, or one below 1.
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if not sizes:
        raise ValueError("expected a size of an n-gram, got none")
    return tuple(whole("size of an n-gram", each, 1) for each in sizes)


def _followers(text: CommittedText, size: int, count: int) -> Array:
    tokens, position = text
    ends, end = jnp.arange(tokens.shape[1])[None], position[:, None]
    same = (ends < end) & (ends >= size - 1)
    for back in range(size):
        last = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0), axis=1)
        same &= (jnp.roll(tokens, back, axis=1) == last) & (end >= size - 1)
    match = jnp.max(jnp.where(same, ends, NOTHING), axis=1, keepdims=True)
    source = match + 1 + jnp.arange(count)[None]
    known = (match >= 0) & (source <= end)
    return jnp.where(known, jnp.take_along_axis(tokens, jnp.where(known, source, 0), axis=1), NOTHING)


@dataclass(frozen=True)
class NGramDrafter(Drafter):
    """Prompt lookup; its state is the committed ``CommittedText``.

    Attributes:
        sizes: n, in the order in which they are tried.
        vocab_size: of the target.
    """

    sizes: tuple[int, ...]
    vocab_size: int = 0
    may_be_empty = True
    knows_chances = False

    def for_target(self, target: Network) -> Drafter:
        """Take the target's vocabulary."""
        return replace(self, vocab_size=target.config.vocab_size)

    def following(self, params: Params, text: CommittedText, count: int) -> Array:
        """Return the tokens [B, ``count``] that are drafted after a text; −1 where there is none."""
        return continuation(text, self.sizes, count)

    def begin(self, params: Params, request: Request, features: Any, capacity: int, scratch: int) -> CommittedText:
        """Return the prompts."""
        return text_of(request, capacity)

    def absorb(self, params: Params, state: CommittedText, verified: Verification) -> CommittedText:
        """Add the accepted tokens and the next one."""
        return committed(state, verified)

    def propose(
        self, params: Params, state: CommittedText, root: Pending, window: int, proposer: Proposer
    ) -> tuple[Drafted, CommittedText]:
        """Look up the window; it is empty where the n-gram is new."""
        tokens = self.following(params, state, window)
        positions = root.position[:, None] + 1 + jnp.arange(window)[None]
        return Drafted(tokens, proposer.certain(self._logits(tokens), tokens, positions)), state

    def foresee(
        self, params: Params, state: CommittedText, verified: Verification, proposer: Proposer
    ) -> tuple[Message, CommittedText]:
        """Look up what follows the whole window: its only likely token."""
        size = jnp.sum(verified.window >= 0, axis=1)
        after = state.with_tokens(jnp.maximum(verified.window, 0), size)
        tokens = self.following(params, after, 1)
        return proposer.others(self._logits(tokens), after.position[:, None] + 1), state

    def rollout(
        self,
        params: Params,
        state: CommittedText,
        verified: Verification,
        roots: Roots,
        window: int,
        proposer: Proposer,
        slots: BranchSlots,
    ) -> tuple[Branches, CommittedText]:
        """Look up every branch, after its own text."""
        drafted = jnp.maximum(verified.window, 0)

        def branch(accepted: Array, token: Array) -> Array:
            text = committed(state, verified._replace(window=drafted, num_accepted=accepted, next_token=token))
            return self.following(params, text, window)

        tokens = jax.vmap(branch, in_axes=1, out_axes=1)(roots.accepted, roots.tokens)
        start = verified.starts(roots).position + 1
        columns = [(tokens[..., number], start + number) for number in range(window)]
        looked_up = [(column, proposer.certain(self._logits(column), column, at)) for column, at in columns]
        return Branches.of(looked_up)._replace(passes=jnp.ones_like(roots.tokens)), state

    def _logits(self, tokens: Array) -> Array:
        """Logits [V, B, T] that prefer the looked-up tokens, and are equal for all others."""
        return 30.0 * (jnp.arange(self.vocab_size)[:, None, None] == tokens[None]).astype(jnp.float32)


def prompt_lookup(size: int | Sequence[int] = 3) -> Draft:
    """Return a draft that looks up what followed the text's last tokens: no parameters, no forward pass.

    Args:
        size: how many last tokens must have occurred before; of several, the first that have are taken.

    Raises:
        ValueError: a size below 1.

    Source: prompt lookup decoding (Saxena, 2023).
    """
    return Draft(NGramDrafter(sizes_of(size)))
