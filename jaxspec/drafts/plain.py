"""A plain language model as a draft: it rolls out windows, one or many branches at a time, over one shared cache.

R·γ + 1 draft tokens are processed per step, whatever the length of the prefix: the one is the last token of the old
window, whose row nothing has needed so far.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.devices import sharding
from jaxspec.drafts._branches import Scratch, branching, take
from jaxspec.drafts._grow import grow
from jaxspec.drafts.base import Drafter
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Notes, Pending, Verification
from jaxspec.models.attention import cached, fill, keep_path, write
from jaxspec.models.base import Array, Cache, Model, Network, Params
from jaxspec.verify.features import Features
from jaxspec.verify.message import Message, Roots
from jaxspec.verify.seen import Seen
from jaxspec.verify.target import Request
from jaxspec.verify.tree import TreeShape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlainState:
    """The draft's key-value cache.

    Attributes:
        cache: rows of all tokens before the last committed one, and of the window except for its last token.
        pending: a token that is run along with the next pass, so that the cache gets its row.
        lacks_last: whether the row of the window's last token is missing; static.
    """

    cache: Cache
    pending: Pending | None = None
    lacks_last: bool = field(default=False, metadata={"static": True})


@dataclass(frozen=True)
class Plain(Drafter):
    """A language model without features of the target."""

    network: Network

    def put_on_mesh(self, params: Params, mesh: Mesh | None) -> tuple[Drafter, Params]:
        """Put parameters onto a mesh, tensor-parallel over its axis ``model``."""
        network, params, *_ = sharding.put_model(Model(self.network, params), mesh)
        return replace(self, network=network), params

    def begin(
        self, params: Params, request: Request, features: Features | None, capacity: int, scratch: int
    ) -> PlainState:
        """Compute the rows of the prompts."""
        return PlainState(fill(self.network, params, request.tokens, capacity + scratch)[0])

    def absorb(self, params: Params, state: PlainState, verified: Verification) -> PlainState:
        """Note the last token, whose row alone is missing: it is run along with the next window or tree."""
        if verified.path is None:
            return PlainState(state.cache, self._pending(state, verified))
        return PlainState(keep_path(state.cache, verified.position, verified.path), verified.last)

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
        self, params: Params, state: PlainState, root: Pending, shape: TreeShape, proposer: Proposer
    ) -> tuple[Array, PlainState]:
        """Run one pass for each depth; nodes of the last one are not run."""
        tokens, cache = grow(self.network, params, state.cache, root, shape, proposer, state.pending)
        return tokens, PlainState(cache)

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
        network, scratch = self.network, scratch_of(cache, roots, window, slots)

        def run(
            carry: tuple[Array, Seen, Cache], number: Array | int, pending: Pending | None = None
        ) -> tuple[tuple[Array, Seen, Cache], tuple[Array, Notes]]:
            (tokens, seen, cache), positions = carry, roots.position + number
            if pending is not None:
                tokens = jnp.concatenate([pending.token[:, None], tokens], axis=1)
                positions = jnp.concatenate([pending.position[:, None], positions], axis=1)
            attend, layers = branching(scratch, roots.position, number, pending), range(network.config.num_layers)
            x, cache = network.blocks(params, network.embed(params, tokens), positions, cache, attend, layers)
            own = proposer._replace(seen=seen)
            drawn, notes = own(network.logits(params, x[:, :, -scratch.rolled :]), roots.position + number + 1)
            return (drawn, own.after(drawn).seen, cache), (drawn, notes)

        start = roots.token, proposer.seen, cache
        if pending is None:
            (_, _, cache), drafted = jax.lax.scan(run, start, jnp.arange(window))
        else:
            carry, first = run(start, 0, pending)
            (_, _, cache), rest = jax.lax.scan(run, carry, jnp.arange(1, window))
            drafted = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), first, rest)
        tokens, notes = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), drafted)
        return Branches(tokens, notes, jnp.full_like(roots.token, window)), cache


def scratch_of(cache: Cache, roots: Pending, window: int, slots: BranchSlots | None) -> Scratch:
    """Return where the rows of a rollout's branches lie."""
    count = roots.token.shape[1]
    first, total = slots or (0, count)
    return Scratch(total, window, cache[0][0].shape[2], first, count)


def _rows_at(rows: Array, position: Array, count: int) -> Array:
    """Return ``count`` rows of each sequence from ``position`` [B] on."""
    return jax.vmap(lambda old, start: jax.lax.dynamic_slice_in_dim(old, start, count, axis=1))(rows, position)
