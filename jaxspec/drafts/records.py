"""What passes between a draft and its caller: windows, branches, and windows under verification."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array
from jaxspec.verify.message import Message, Roots
from jaxspec.verify.sampling import NOTHING


class Pending(NamedTuple):
    """A token that a draft has not run yet: ``token`` and ``position``, both [B] or [B, R] int32."""

    token: Array
    position: Array

    def alone(self) -> "Along":
        """Return a token of each sequence, [B], as one that is run along with others."""
        return Along(self.token[:, None], self.position[:, None])


class Along(NamedTuple):
    """Tokens of each sequence that are run along with a pass over others, so that the cache gets their rows.

    Attributes:
        tokens: [B, K].
        rows: consecutive: [B, K].
        inputs: what comes with them, [D', B, K], for a draft that reads features of the target.
    """

    tokens: Array
    rows: Array
    inputs: Any = ()

    def before(self, tokens: Array, rows: Array, inputs: Any) -> "Along":
        """Return the other tokens behind these."""
        other = Along(tokens, rows, inputs)
        return jax.tree.map(lambda one, two: jnp.concatenate([one, two], axis=-1), self, other)


class Verification(NamedTuple):
    """A window under verification; from ``num_accepted`` on, fields are None until they have arrived.

    Attributes:
        window: ŷ₁..ŷ_γ, [B, γ]; −1 where fewer were drafted.
        position: of the last committed token before the window: [B].
        size: tokens that were drafted: [B]; None: all γ.
        num_accepted: A: [B].
        next_token: the correction or bonus token: [B].
        features: what the target has sent of its hidden states at the last committed token and the window's, leaves
            [B, γ+1, D]. Those behind the first A + 1 belong to rejected tokens.
        path: of a tree, the nodes [B, D+1] that the verdict confirms; then the window is the tokens along it.
    """

    window: Array
    position: Array
    size: Array | None = None
    num_accepted: Array | None = None
    next_token: Array | None = None
    features: Any = None
    path: Array | None = None

    @property
    def last(self) -> Pending:
        """The window's last token."""
        if self.size is None:
            return Pending(self.window[:, -1], self.position + self.window.shape[1])
        size = jnp.maximum(self.size, 1)
        last = jnp.take_along_axis(self.window, size[:, None] - 1, axis=1)[:, 0]
        return Pending(jnp.maximum(last, 0), self.position + size)

    @property
    def newest(self) -> Pending:
        """The last accepted token; the window's first if none is."""
        assert self.num_accepted is not None
        count = jnp.maximum(self.num_accepted, 1)
        token = jnp.take_along_axis(self.window, count[:, None] - 1, axis=1)[:, 0]
        return Pending(jnp.maximum(token, 0), self.position + count)

    def starts(self, roots: Roots) -> Pending:
        """Return the roots of branches as tokens [B, R] with their positions."""
        return Pending(roots.tokens, self.position[:, None] + roots.accepted + 1)


class Notes(NamedTuple):
    """What comes with drafted tokens, leaves shaped as they are with trailing axes; None where it is not needed.

    Attributes:
        probabilities: the distribution that they were drawn from, for the rule of acceptance.
        scores: of all tokens, with the target's noise, for the draft's own message: [..., V] float32; of the next
            window that message.
    """

    probabilities: Any
    scores: Any

    def of_passes(self) -> "Notes":
        """Return notes [B, R, γ, …] of branches as ``Branches`` has them."""
        return self if self.scores is None else self._replace(scores=jnp.moveaxis(self.scores, 2, 1))


class Branches(NamedTuple):
    """Branches that were rolled out.

    Attributes:
        tokens: [B, R, γ].
        notes: of these tokens; scores are [B, γ, R, V], so that a pass writes them where it computes them.
        passes: J, passes of the draft that each branch took: [B, R].
        memory: what the draft keeps of each branch until one is taken: leaves [B, R, …].
    """

    tokens: Array
    notes: Notes
    passes: Array
    memory: Any = ()

    @classmethod
    def of(cls, drafted: Sequence[tuple[Array, Notes]]) -> "Branches":
        """Stack branches from γ pairs of tokens [B, R] and their notes, drafted one after the other."""
        tokens, notes = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=2), *drafted)
        return cls(tokens, notes.of_passes(), jnp.full_like(tokens[:, :, 0], len(drafted)))


class Drafted(NamedTuple):
    """One drafted window.

    Attributes:
        tokens: [B, γ].
        notes: of these tokens.
        rows: what ``commit`` adds to the draft's state, leaves [B, G, γ, …]: key and value rows of every layer.
    """

    tokens: Array
    notes: Notes
    rows: Any = ()


class Window(NamedTuple):
    """A window to verify: ``tokens`` [B, γ], and the distributions they were drawn from if the rule needs them."""

    tokens: Array
    probabilities: Any


class BranchSlots(NamedTuple):
    """Which of ``total`` branches of a step a rollout fills, from ``first`` on; others are filled by another one."""

    first: int
    total: int


def chosen(branch: Array, values: Array) -> Array:
    """Return values [B, R, …] of one ``branch`` [B] of every sequence."""
    return jnp.take_along_axis(values, branch.reshape(-1, *(1,) * (values.ndim - 1)), axis=1)[:, 0]


def notes_of(branch: Array, notes: Notes) -> Notes:
    """Return the notes of one ``branch`` [B] of every sequence."""
    probabilities, scores = notes
    if scores is not None:
        scores = jnp.take_along_axis(scores, branch[:, None, None, None], axis=2)[:, :, 0]
    return Notes(jax.tree.map(lambda leaf: chosen(branch, leaf), probabilities), scores)


def filled(drafted: Drafted, window: int) -> Drafted:
    """Fill up a window of fewer tokens with ``NOTHING``: no token has a probability, all have equal scores."""
    more = window - drafted.tokens.shape[1]

    def pad(leaf: Array, axis: int, value: float = 0) -> Array:
        widths = [(0, more if at == axis else 0) for at in range(leaf.ndim)]
        return jnp.pad(leaf, widths, constant_values=value)

    def none(leaf: Array) -> Array:
        return pad(leaf, 1, 0 if jnp.issubdtype(leaf.dtype, jnp.integer) else -jnp.inf)

    probabilities, scores = drafted.notes
    notes = Notes(jax.tree.map(none, probabilities), None if scores is None else pad(scores, 1))
    rows = jax.tree.map(lambda leaf: pad(leaf, 2), drafted.rows)
    return Drafted(pad(drafted.tokens, 1, NOTHING), notes, rows)


def as_window(drafted: Drafted) -> tuple[Window, Message | None]:
    """Return a drafted window as the target gets it, and the draft's own message along it."""
    return Window(drafted.tokens, drafted.notes.probabilities), drafted.notes.scores
