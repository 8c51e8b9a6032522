"""Rolling out branches: γ passes of a draft's network over one shared cache, one token of every branch at a time."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts._branches import branching, scratch_of
from jaxspec.drafts.networks import DraftNetwork
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Along, Branches, BranchSlots, Notes, Pending
from jaxspec.models.base import Array, Cache, Params
from jaxspec.verify.features import Reads
from jaxspec.verify.seen import Seen


class RollTask(NamedTuple):
    """Branches to roll out.

    Attributes:
        network: of the draft.
        params: of the draft.
        roots: first tokens of the branches and their positions, [B, R]; a branch sees the rows before its root's.
        inputs: what comes with the roots: [D', B, R].
        window: γ.
        proposer: how tokens are drawn.
    """

    network: DraftNetwork
    params: Params
    roots: Pending
    inputs: Any
    window: int
    proposer: Proposer


class _Rolling(NamedTuple):
    """Branches during a rollout.

    Attributes:
        newest: the last token of each: [B, R].
        inputs: what comes with it.
        seen: tokens that each branch holds.
        cache: rows.
        drawn: tokens [B, R, γ] and their notes, written in place.
    """

    newest: Array
    inputs: Any
    seen: Seen
    cache: Cache
    drawn: tuple[Array, Notes] | None


def roll(
    task: RollTask, cache: Cache, along: Along | None = None, slots: BranchSlots | None = None
) -> tuple[Branches, Cache]:
    """Continue every root by γ tokens.

    Args:
        task: the branches.
        cache: rows that all branches share; R·γ at its end are scratch.
        along: tokens that are run along with the first pass.
        slots: of these branches in the scratch; default: they fill it.

    Returns:
        The branches, their ``memory`` the draft's own features [B, R, 1, γ, D'] if it reads any; and the cache with the
        rows of ``along`` and, in its scratch, of the branches.
    """
    (network, params, roots, inputs, window, proposer), count = task, task.roots.token.shape[1]
    scratch, rows = scratch_of(cache, count, window, slots), row_of(network, roots.position)

    def run(old: _Rolling, number: Any, along: Along | None = None) -> tuple[_Rolling, Any]:
        tokens, positions, inputs = old.newest, rows + number, old.inputs
        if along is not None:
            tokens, positions, inputs = along.before(tokens, positions, inputs)
        attend = branching(scratch, rows, number, None if along is None else along.rows)
        x, cache = network.run(params, inputs, tokens, positions, old.cache, attend, number)
        x, own = x[:, :, -count:], proposer._replace(seen=old.seen)
        drawn, notes = own(network.logits(params, x, number), roots.position + number + 1)
        following = network.following(params, x)
        kept = () if network.reads == Reads() else network.guessed(following)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=2)
        blank = lambda leaf: jnp.zeros((*leaf.shape[:2], window, *leaf.shape[2:]), leaf.dtype)  # noqa: E731
        before = jax.tree.map(blank, (drawn, notes)) if old.drawn is None else old.drawn
        both = jax.tree.map(put, before, (drawn, notes))
        return _Rolling(drawn, following, own.after(drawn).seen, cache, both), kept

    state, kept = run(_Rolling(roots.token, inputs, proposer.seen, cache, None), 0, along)
    parts = [jax.tree.map(lambda leaf: leaf[None], kept)]
    if network.depth is None:
        state, rest = jax.lax.scan(run, state, jnp.arange(1, window))
        parts.append(rest)
    else:
        for number in range(1, window):
            state, kept = run(state, number)
            parts.append(jax.tree.map(lambda leaf: leaf[None], kept))
    assert state.drawn is not None
    (tokens, notes), features = state.drawn, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    memory = jax.tree.map(lambda leaf: jnp.transpose(leaf, (2, 3, 0, 1))[:, :, None], features)
    return Branches(tokens, notes, jnp.full_like(roots.token, window), memory), state.cache


def row_of(network: DraftNetwork, position: Array) -> Array:
    """Return the row of a token at ``position``; the first token of a text has no pair and shares row 0."""
    return position if network.lag == 0 else jnp.maximum(position - network.lag, 0)
