"""The protocol of a draft: whatever proposes windows of tokens for a target to verify.

One step of decoding calls a draft in this order; ``state`` is a pytree of its own:

    speculative:  absorb → propose → commit
    Mirror-SD:    [foresee → rollout] → [rollout] → absorb → take or propose → commit

``absorb`` gets the verdict on a window and the target's hidden states at its tokens; ``rollout`` runs before the
verdict. A draft of another kind is one subclass of ``Drafter``; only ``begin``, ``absorb``, ``foresee`` and ``rollout``
have no default.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.devices.processes import put
from jaxspec.devices.sharding import shared_home
from jaxspec.models.base import Array, Network, Params
from jaxspec.text import Text
from jaxspec.verify.acceptance import Acceptance, DraftProbabilities
from jaxspec.verify.features import Features, Reads
from jaxspec.verify.message import Message, Roots, likely
from jaxspec.verify.sampling import INVALID, NOTHING, SamplingArrays, are_numbers, perturbed
from jaxspec.verify.seen import Seen
from jaxspec.verify.target import Request
from jaxspec.verify.tree import TreeShape


class Pending(NamedTuple):
    """A token that a draft has not run yet: ``token`` and ``position``, both [B] or [B, R] int32."""

    token: Array
    position: Array


class Verification(NamedTuple):
    """A window under verification; from ``num_accepted`` on, fields are None until they are known.

    Attributes:
        window: ŷ₁..ŷ_γ, [B, γ]; −1 where fewer were drafted.
        position: of the last committed token before the window: [B].
        size: tokens that were drafted: [B]; None: all γ.
        num_accepted: A: [B].
        next_token: the correction or bonus token: [B].
        features: the target's hidden states at the last committed token and the window's, [B, γ+1, D], as far as they
            have arrived. Those behind the first A + 1 belong to rejected tokens.
        path: of a tree, the nodes [B, D+1] that the verdict confirms; then the window is the tokens along it.
    """

    window: Array
    position: Array
    size: Array | None = None
    num_accepted: Array | None = None
    next_token: Array | None = None
    features: Features | None = None
    path: Array | None = None

    @property
    def last(self) -> Pending:
        """The window's last token."""
        if self.size is None:
            return Pending(self.window[:, -1], self.position + self.window.shape[1])
        size = jnp.maximum(self.size, 1)
        last = jnp.take_along_axis(self.window, size[:, None] - 1, axis=1)[:, 0]
        return Pending(jnp.maximum(last, 0), self.position + size)

    def starts(self, roots: Roots) -> Pending:
        """The roots of branches as tokens [B, R] with their positions."""
        return Pending(roots.tokens, self.position[:, None] + roots.accepted + 1)


class Notes(NamedTuple):
    """What comes with drafted tokens, leaves shaped as they are with trailing axes; None where it is not needed.

    Attributes:
        probabilities: the distribution that they were drawn from, for the rule of acceptance.
        likely: the draft's other candidates, for the policy.
    """

    probabilities: Any
    likely: Message | None


class Branches(NamedTuple):
    """Branches that were rolled out.

    Attributes:
        tokens: [B, R, γ].
        notes: of these tokens.
        passes: J, passes of the draft that each branch took: [B, R].
        memory: what the draft keeps of each branch until one is taken: leaves [B, R, …].
    """

    tokens: Array
    notes: Notes
    passes: Array
    memory: Any = ()

    @classmethod
    def of(cls, drafted: Sequence[tuple[Array, Notes]]) -> "Branches":
        """Branches from γ pairs of tokens [B, R] and their notes, drafted one after the other."""
        tokens, notes = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=2), *drafted)
        return cls(tokens, notes, jnp.full_like(tokens[:, :, 0], len(drafted)))


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


class Place(NamedTuple):
    """Which of ``total`` branches of a step a rollout fills, from ``first`` on; others are filled by another one."""

    first: int
    total: int


class Proposer(NamedTuple):
    """How a draft's tokens are drawn.

    Attributes:
        acceptance: the rule.
        sampling: of each sequence.
        seen: tokens that each branch holds, its root included: marks [B, R, V].
        num_candidates: κ, other likely tokens that are noted with each; 0: none.
    """

    acceptance: Acceptance
    sampling: SamplingArrays | None
    seen: Seen = Seen()
    num_candidates: int = 0

    def __call__(
        self, logits: Array, positions: Array, tokens: Array | None = None, noted: int | None = None
    ) -> tuple[Array, Notes]:
        """Draws tokens [B, R] from logits [V, B, R], for ``positions`` [B, R], unless ``tokens`` are given.

        Also returns their notes, or those of the first ``noted`` tokens.
        """
        scores = cache(lambda: perturbed(logits, self.sampling, positions, self.seen))
        drawn, probabilities = self.acceptance.propose(logits, self.sampling, positions, self.seen, scores)
        tokens = drawn if tokens is None else tokens
        probabilities = jax.tree.map(lambda leaf: leaf[:, :noted], probabilities)
        if not self.num_candidates:
            return tokens, Notes(probabilities, None)
        return tokens, Notes(probabilities, likely(scores()[:, :, :noted], tokens[:, :noted], self.num_candidates))

    def others(self, logits: Array, positions: Array) -> Message:
        """The draft's most likely tokens at ``positions`` [B, T], with the target's noise: [B, T, κ]."""
        scores = perturbed(logits, self.sampling, positions, self.seen)
        return likely(scores, jnp.full_like(positions, -1), self.num_candidates)

    def after(self, tokens: Array) -> "Proposer":
        """The proposer once each branch holds one token more, tokens [B, R]."""
        return self._replace(seen=self.seen.with_token(tokens))

    def children(self, logits: Array, position: Array, count: int) -> Array:
        """The ``count`` best tokens after each of R nodes of one depth: [B, R, count] from logits [V, B, R].

        ``position`` [B] is that of the children. They compete for one and the same draw of the target, whose noise the
        rule may add; ``INVALID`` where the logits are not numbers.
        """
        assert self.acceptance.rank is not None  # checked by the factory
        scores = self.acceptance.rank(logits, self.sampling, position[:, None], self.seen)
        best = jax.lax.top_k(jnp.moveaxis(scores, 0, -1), count)[1].astype(jnp.int32)
        return jnp.where(are_numbers(scores)[..., None], best, INVALID)

    def certain(self, logits: Array, tokens: Array, positions: Array) -> Notes:
        """Notes of tokens that were not drawn, such as looked-up ones: each has probability 1.

        The draft's other candidates come from its ``logits`` [V, B, T].
        """
        _, (probabilities, others) = self(logits, positions, tokens)
        if probabilities is not None:
            order = jnp.arange(probabilities.tokens.shape[2])[None, None]
            filled_up = (jnp.maximum(tokens, 0)[..., None] + order) % logits.shape[0]
            only = (order == 0) & (tokens >= 0)[..., None]
            probabilities = DraftProbabilities(filled_up, jnp.where(only, 0.0, -jnp.inf))
        return Notes(probabilities, others)


class Drafter:
    """What is fixed about a draft; a frozen dataclass, static in compiled programs.

    Methods are pure functions of its parameters and its state. ``state`` holds what the draft knows of all tokens
    before the last committed one.
    """

    #: Hidden states of the target that it wants.
    reads: Reads = Reads()

    def for_target(self, target: Network) -> "Drafter":
        """This drafter for a target; raises ValueError if it does not fit it."""
        return self

    def place(self, params: Params, mesh: Mesh | None) -> tuple["Drafter", Params]:
        """Puts parameters onto a mesh; default: a copy on every device."""
        return self, put(params, shared_home(mesh), mesh)

    def begin(self, params: Params, request: Request, features: Features | None, capacity: int, scratch: int) -> Any:
        """State after the prompts.

        Args:
            params: of the draft.
            request: prompts; the last token of each is the first root.
            features: the target's hidden states at all prompt tokens, [B, P, D].
            capacity: positions that a sequence can reach.
            scratch: rows beside them for branches: R·γ.
        """
        raise NotImplementedError

    def absorb(self, params: Params, state: Any, verified: Verification) -> Any:
        """State after a verdict: with the window's accepted tokens, of which ``verified`` has all features."""
        raise NotImplementedError

    def propose(
        self, params: Params, state: Any, root: Pending, window: int, proposer: Proposer
    ) -> tuple[Drafted, Any]:
        """Drafts ``window`` tokens after ``root`` [B], the last committed token; default: as one branch.

        After a step that has rolled out branches the state that it returns is dropped.
        """
        first = Roots(jnp.zeros_like(root.token)[:, None], root.token[:, None])
        before = Verification(jnp.zeros((len(root.token), 0), jnp.int32), root.position - 1)
        branches, state = self.rollout(params, state, before, first, window, proposer, Place(0, 1))
        return self.take(state, branches, jnp.zeros_like(root.token)), state

    def foresee(self, params: Params, state: Any, verified: Verification, proposer: Proposer) -> tuple[Message, Any]:
        """Its candidates for the token behind the whole window, before the verdict: [B, 1, κ]."""
        raise NotImplementedError

    def rollout(
        self,
        params: Params,
        state: Any,
        verified: Verification,
        roots: Roots,
        window: int,
        proposer: Proposer,
        place: Place,
    ) -> tuple[Branches, Any]:
        """Continues every root by ``window`` tokens, before the verdict.

        Args:
            params: of the draft.
            state: of the draft; nothing of the window is committed in it.
            verified: the window under verification. Features have arrived as far as the exit's layer reaches, none if
                these branches start before the target's prefix ends.
            roots: branch b follows ``roots.accepted[b]`` tokens of the window and the token ``roots.tokens[b]``.
            window: γ.
            proposer: how tokens are drawn.
            place: of these branches in the scratch.
        """
        raise NotImplementedError

    def take(self, state: Any, branches: Branches, branch: Array) -> Drafted:
        """The window of one ``branch`` [B] of every sequence; default: its ``memory`` becomes the rows."""
        return Drafted(*jax.tree.map(partial(chosen, branch), (branches.tokens, branches.notes, branches.memory)))

    def commit(self, state: Any, drafted: Drafted, position: Array) -> Any:
        """State in which a drafted window follows the root at ``position`` [B]; default: the same."""
        return state

    def grow(
        self, params: Params, state: Any, root: Pending, shape: TreeShape, proposer: Proposer
    ) -> tuple[Array, Any]:
        """Drafts a tree after ``root`` [B]: tokens [B, N], the root's first. The next ``absorb`` gets the path.

        Only ``speculative(tree=...)`` needs it.
        """
        raise ValueError(f"expected a draft that can grow a tree, got {type(self).__name__}; leave tree=None")

    def follow(
        self, params: Params, state: Any, root: Pending, tokens: Array, proposer: Proposer
    ) -> tuple[Drafted, Any]:
        """A window of given tokens [B, γ] after ``root``; the draft chooses the first where it is −1.

        Only ``fallbacks.NGram`` needs it.
        """
        raise ValueError(
            f"expected a draft that can run tokens that were looked up, got {type(self).__name__}; use fallbacks.Full()"
        )


class Draft(NamedTuple):
    """A drafter and its parameters, bundled at the edge, as a ``Model`` is a network and its parameters.

    Attributes:
        drafter: pure functions.
        params: their parameters.
        text: tokenizer, for a draft that came with one.
    """

    drafter: Drafter
    params: Params = ()
    text: Text | None = None


def chosen(branch: Array, values: Array) -> Array:
    """Values [B, R, …] of one ``branch`` [B] of every sequence."""
    return jnp.take_along_axis(values, branch.reshape(-1, *(1,) * (values.ndim - 1)), axis=1)[:, 0]


def filled(drafted: Drafted, window: int) -> Drafted:
    """A window of fewer tokens, filled up with ``NOTHING``."""
    more = window - drafted.tokens.shape[1]

    def pad(leaf: Array, axis: int, value: float = 0) -> Array:
        widths = [(0, more if at == axis else 0) for at in range(leaf.ndim)]
        return jnp.pad(leaf, widths, constant_values=value)

    probabilities, others = drafted.notes
    if probabilities is not None:
        tokens, logs = probabilities
        probabilities = DraftProbabilities(pad(tokens, 1), pad(logs, 1, -jnp.inf))
    if others is not None:
        others = Message(pad(others.tokens, 1), pad(others.scores, 1, -jnp.inf), pad(others.drafted, 1, -jnp.inf))
    rows = jax.tree.map(lambda leaf: pad(leaf, 2), drafted.rows)
    return Drafted(pad(drafted.tokens, 1, NOTHING), Notes(probabilities, others), rows)


@partial(jax.jit, static_argnames=("drafter", "acceptance", "window", "capacity", "branches", "num_candidates"))
def first_window(
    drafter: Drafter,
    acceptance: Acceptance,
    params: Params,
    request: Request,
    features: Features | None,
    window: int,
    capacity: int,
    branches: int = 1,
    num_candidates: int = 0,
) -> tuple[Window, Message | None, Any]:
    """Runs the prompts through the draft and drafts the first window."""
    state = drafter.begin(params, request, features, capacity, window * branches)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    proposer = Proposer(acceptance, request.sampling, request.seen, num_candidates)
    return next_window(drafter, params, state, Pending(last, request.lengths - 1), window, proposer)


@partial(jax.jit, static_argnames=("drafter", "acceptance", "window", "capacity", "shape"))
def first_tree(
    drafter: Drafter,
    acceptance: Acceptance,
    params: Params,
    request: Request,
    features: Features | None,
    window: int,
    capacity: int,
    shape: TreeShape,
) -> tuple[Window, None, Any]:
    """Runs the prompts through the draft and drafts the first tree; ``window`` is its depth."""
    state = drafter.begin(params, request, features, capacity, shape.size)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    proposer = Proposer(acceptance, request.sampling, request.seen)
    tokens, state = drafter.grow(params, state, Pending(last, request.lengths - 1), shape, proposer)
    return Window(tokens, None), None, state


def next_window(
    drafter: Drafter, params: Params, state: Any, root: Pending, window: int, proposer: Proposer
) -> tuple[Window, Message | None, Any]:
    """Drafts one window after ``root`` and commits it; the proposer has ``seen`` marks [B, V]."""
    own = proposer._replace(seen=proposer.seen.as_branch())
    drafted, state = drafter.propose(params, state, root, window, own)
    return *as_window(drafted), drafter.commit(state, drafted, root.position)


def as_window(drafted: Drafted) -> tuple[Window, Message | None]:
    """A drafted window as the target gets it, and the draft's other candidates."""
    return Window(drafted.tokens, drafted.notes.probabilities), drafted.notes.likely
