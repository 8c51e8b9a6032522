"""A plain language model as a draft: it rolls out windows, one or many branches at a time, over one shared cache.

R·γ + 1 draft tokens are processed per step, whatever the length of the prefix: the one is the last token of the old
window, whose row nothing has needed so far.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.devices import sharding
from jaxspec.drafts._branches import take
from jaxspec.drafts._grow import GrowTask
from jaxspec.drafts._roll import RollTask, roll
from jaxspec.drafts.base import Drafter
from jaxspec.drafts.networks import TokensOnly
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Pending, Verification
from jaxspec.drafts.trees import TreePolicy
from jaxspec.models.attention import cached, fill, keep_path, with_tree, write
from jaxspec.models.base import Array, Cache, Model, Network, Params
from jaxspec.verify.message import Message, Roots
from jaxspec.verify.target import Request


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlainState:
    """The draft's key-value cache.

    Attributes:
        cache: rows of all tokens before the last committed one, and of the window except for its last token; while a
            tree is verified, ``TreeRows``.
        pending: a token that is run along with the next pass, so that the cache gets its row.
        lacks_last: whether the row of the window's last token is missing; static.
        order: in which the nodes of a tree were run, where that is not theirs: [B, N].
    """

    cache: Any
    pending: Pending | None = None
    lacks_last: bool = field(default=False, metadata={"static": True})
    order: Array | None = None


@dataclass(frozen=True)
class Plain(Drafter):
    """A language model without features of the target."""

    network: Network

    def put_on_mesh(self, params: Params, mesh: Mesh | None) -> tuple[Drafter, Params]:
        """Put parameters onto a mesh, tensor-parallel over its axis ``model``."""
        network, params, *_ = sharding.put_model(Model(self.network, params), mesh)
        return replace(self, network=network), params

    def begin(self, params: Params, request: Request, features: Any, capacity: int, scratch: int) -> PlainState:
        """Compute the rows of the prompts."""
        return PlainState(fill(self.network, params, request.tokens, capacity + scratch)[0])

    def absorb(self, params: Params, state: PlainState, verified: Verification) -> PlainState:
        """Note a token whose row may be missing: it is run along with the next window or tree."""
        if verified.path is None:
            return PlainState(state.cache, self._pending(state, verified))
        order = verified.path if state.order is None else jnp.take_along_axis(state.order, verified.path, axis=1)
        return PlainState(keep_path(state.cache, verified.position, order), verified.newest)

    def propose(
        self, params: Params, state: PlainState, root: Pending, window: int, proposer: Proposer
    ) -> tuple[Drafted, PlainState]:
        """Draft one branch; its rows are in the scratch only."""
        roots = Pending(root.token[:, None], root.position[:, None])
        rolled, cache = self.roll(params, state.cache, roots, window, proposer, state.pending)
        return take(rolled, cache, jnp.zeros_like(root.token)), PlainState(cache)

    def foresee(
        self, params: Params, state: PlainState, verified: Verification, proposer: Proposer
    ) -> tuple[Message, PlainState]:
        """Run the window's last token."""
        last = verified.last
        logits, cache = self.extend(params, state.cache, last.token[:, None], last.position)
        return proposer.others(logits, last.position[:, None] + 1), PlainState(cache)

    def rollout(
        self,
        params: Params,
        state: PlainState,
        verified: Verification,
        roots: Roots,
        window: int,
        proposer: Proposer,
        slots: BranchSlots,
    ) -> tuple[Branches, PlainState]:
        """Roll out all branches in one batch."""
        at, pending = verified.starts(roots), self._pending(state, verified)
        branches, cache = self.roll(params, state.cache, at, window, proposer, pending, slots)
        return branches, PlainState(cache)

    def take(self, state: PlainState, branches: Branches, branch: Array) -> Drafted:
        """Pick its rows from the scratch."""
        return take(branches, state.cache, branch)

    def commit(self, state: PlainState, drafted: Drafted, position: Array) -> PlainState:
        """Write the window's rows from ``position`` on."""
        rows = jax.tree.map(lambda old, new: write(old, new, position), state.cache, drafted.rows)
        return PlainState(rows, lacks_last=True)

    def grow(
        self, params: Params, state: PlainState, root: Pending, policy: TreePolicy, proposer: Proposer
    ) -> tuple[Any, PlainState]:
        """Run one pass for each depth; nodes of the last one are not run."""
        along = None if state.pending is None else state.pending.alone()
        grown = policy.grow(
            GrowTask(TokensOnly(self.network), params, root, (), proposer, along), with_tree(state.cache)
        )
        return grown.drawn, PlainState(grown.cache, order=grown.order)

    def follow(
        self, params: Params, state: PlainState, root: Pending, tokens: Array, proposer: Proposer
    ) -> tuple[Drafted, PlainState]:
        """Run one pass over the window, for its rows and its first token."""
        cache, window = state.cache, tokens.shape[1]
        if state.pending is not None:
            _, cache = self.extend(params, cache, state.pending.token[:, None], state.pending.position)
        inputs = jnp.maximum(jnp.concatenate([root.token[:, None], tokens[:, :-1]], axis=1), 0)
        logits, cache = self.extend(params, cache, inputs, root.position)
        positions = root.position[:, None] + 1 + jnp.arange(window)[None]
        own, _ = proposer(logits[:, :, :1], positions[:, :1])
        tokens = jnp.concatenate([jnp.where(tokens[:, :1] >= 0, tokens[:, :1], own), tokens[:, 1:]], axis=1)
        rows = jax.tree.map(lambda leaf: _rows_at(leaf, root.position, window), cache)
        return Drafted(tokens, proposer.certain(logits, tokens, positions), rows), PlainState(cache)

    def _pending(self, state: PlainState, verified: Verification) -> Pending | None:
        return verified.last if state.lacks_last else state.pending

    def extend(self, params: Params, cache: Cache, tokens: Array, position: Array) -> tuple[Array, Cache]:
        """Add rows of tokens [B, T] from ``position`` [B] on; return logits after each, [V, B, T], and the cache."""
        network, positions = self.network, position[:, None] + jnp.arange(tokens.shape[1])[None]
        x, layers = network.embed(params, tokens), range(network.config.num_layers)
        x, cache = network.blocks(params, x, positions, cache, cached(positions), layers)
        return network.logits(params, x), cache

    def roll(
        self,
        params: Params,
        cache: Cache,
        roots: Pending,
        window: int,
        proposer: Proposer,
        pending: Pending | None = None,
        slots: BranchSlots | None = None,
    ) -> tuple[Branches, Cache]:
        """Continue every root [B, R] by ``window`` tokens.

        Args:
            params: of the network.
            cache: rows that all branches share; R·γ at its end are scratch.
            roots: first tokens of the branches and their positions; a branch sees the rows below its position.
            window: γ.
            proposer: how tokens are drawn.
            pending: a token that is run along with the first pass so that the cache gets its row.
            slots: of these branches in the scratch; default: they fill it.

        Returns:
            The branches, and the cache with the pending row and the branches' rows in its scratch.
        """
        task = RollTask(TokensOnly(self.network), params, roots, (), window, proposer)
        return roll(task, cache, None if pending is None else pending.alone(), slots)


def _rows_at(rows: Array, position: Array, count: int) -> Array:
    """Return ``count`` rows of each sequence from ``position`` [B] on."""
    return jax.vmap(lambda old, start: jax.lax.dynamic_slice_in_dim(old, start, count, axis=1))(rows, position)
