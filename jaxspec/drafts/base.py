"""The protocol of a draft: whatever proposes windows of tokens for a target to verify.

One step of decoding calls a draft in this order; ``state`` is a pytree of its own:

    speculative:  absorb → propose → commit
    Mirror-SD:    [foresee → rollout] → [rollout] → absorb → take or propose → commit

``absorb`` gets the verdict on a window and the target's hidden states at its tokens; ``rollout`` runs before the
verdict. A draft of another kind is one subclass of ``Drafter``; only ``begin``, ``absorb``, ``foresee`` and ``rollout``
have no default.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.devices.processes import put
from jaxspec.devices.sharding import replicated_sharding
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Pending, Verification, chosen, notes_of
from jaxspec.drafts.trees import TreePolicy
from jaxspec.models.base import Array, Network, Params
from jaxspec.text import Text
from jaxspec.verify.features import Reader, Reads
from jaxspec.verify.message import Message, Roots
from jaxspec.verify.target import Request


class Drafter:
    """What is fixed about a draft; a frozen dataclass, static in compiled programs.

    Methods are pure functions of its parameters and its state. ``state`` holds what the draft knows of all tokens
    before the last committed one.
    """

    #: Hidden states of the target that it reads.
    reads: Reads = Reads()
    #: Most tokens of a window, or levels of a tree; None: any number.
    max_window: int | None = None
    #: Whether its probabilities say what the target accepts; those of looked-up tokens are all 1.
    knows_chances: bool = True
    #: Whether a window may have no token at all, so that a pass of the target over one token does.
    may_be_empty: bool = False

    def for_target(self, target: Network) -> "Drafter":
        """Return this drafter for a target; raise ValueError if it does not fit it."""
        return self

    def reader(self) -> Reader:
        """Return what the target sends; default: the hidden states themselves."""
        return Reader(self.reads)

    def fusion(self, params: Params) -> Params:
        """Return the parameters that the target needs for it."""
        return ()

    def put_on_mesh(self, params: Params, mesh: Mesh | None) -> tuple["Drafter", Params]:
        """Put parameters onto a mesh; default: a copy on every device."""
        return self, put(params, replicated_sharding(mesh), mesh)

    def begin(self, params: Params, request: Request, features: Any, capacity: int, scratch: int) -> Any:
        """Return the state after the prompts.

        Args:
            params: of the draft.
            request: prompts; the last token of each is the first root.
            features: what the target has sent of its hidden states at all prompt tokens, [B, P, D].
            capacity: positions that a sequence can reach.
            scratch: rows beside them for branches: R·γ.
        """
        raise NotImplementedError

    def absorb(self, params: Params, state: Any, verified: Verification) -> Any:
        """Return the state after a verdict, with the window's accepted tokens; ``verified`` has all their features."""
        raise NotImplementedError

    def propose(
        self, params: Params, state: Any, root: Pending, window: int, proposer: Proposer
    ) -> tuple[Drafted, Any]:
        """Draft ``window`` tokens after ``root`` [B], the last committed token; default: as one branch.

        After a step that has rolled out branches the state that it returns is dropped.
        """
        first = Roots(jnp.zeros_like(root.token)[:, None], root.token[:, None])
        before = Verification(jnp.zeros((len(root.token), 0), jnp.int32), root.position - 1)
        branches, state = self.rollout(params, state, before, first, window, proposer, BranchSlots(0, 1))
        return self.take(state, branches, jnp.zeros_like(root.token)), state

    def foresee(self, params: Params, state: Any, verified: Verification, proposer: Proposer) -> tuple[Message, Any]:
        """Return its candidates for the token behind the whole window, before the verdict: [B, 1, κ]."""
        raise NotImplementedError

    def rollout(
        self,
        params: Params,
        state: Any,
        verified: Verification,
        roots: Roots,
        window: int,
        proposer: Proposer,
        slots: BranchSlots,
    ) -> tuple[Branches, Any]:
        """Continue every root by ``window`` tokens, before the verdict.

        Args:
            params: of the draft.
            state: of the draft; nothing of the window is committed in it.
            verified: the window under verification. Features have arrived as far as the exit's layer reaches, none if
                these branches start before the target's prefix ends.
            roots: branch b follows ``roots.accepted[b]`` tokens of the window and the token ``roots.tokens[b]``.
            window: γ.
            proposer: how tokens are drawn.
            slots: of these branches in the scratch.
        """
        raise NotImplementedError

    def take(self, state: Any, branches: Branches, branch: Array) -> Drafted:
        """Return the window of one ``branch`` [B] of every sequence; default: its ``memory`` becomes the rows."""
        tokens, memory = jax.tree.map(partial(chosen, branch), (branches.tokens, branches.memory))
        return Drafted(tokens, notes_of(branch, branches.notes), memory)

    def commit(self, state: Any, drafted: Drafted, position: Array) -> Any:
        """Return the state in which a drafted window follows the root at ``position`` [B]; default: the same."""
        return state

    def grow(
        self, params: Params, state: Any, root: Pending, policy: TreePolicy, proposer: Proposer
    ) -> tuple[Any, Any]:
        """Draft a tree after ``root`` [B] for ``policy.tree``. The next ``absorb`` gets the path.

        Only ``speculative(tree=...)`` needs it.
        """
        raise NotImplementedError

    def follow(
        self, params: Params, state: Any, root: Pending, tokens: Array, proposer: Proposer
    ) -> tuple[Drafted, Any]:
        """Draft a window of given tokens [B, γ] after ``root``; the draft chooses the first where it is −1.

        Only ``fallbacks.NGram`` needs it.
        """
        raise NotImplementedError


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
