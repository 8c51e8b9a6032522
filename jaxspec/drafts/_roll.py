"""Rolling out branches: γ passes of a draft's network over one shared cache, one token of every branch at a time."""

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
        window_so_far = _written(old.drawn or _nothing(window, drawn, notes), drawn, notes, number)
        return _Rolling(drawn, following, own.after(drawn).seen, cache, window_so_far), kept

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


#: Which axis of tokens, probabilities and scores of branches counts a window's tokens (``Branches``).
_AXES = 2, 2, 1


def _nothing(window: int, drawn: Array, notes: Notes) -> tuple[Array, Notes]:
    """Return zeros with room for a window of what is drawn in a pass."""

    def zeros(axis: int, part: Any) -> Any:
        like = lambda leaf: jnp.zeros((*leaf.shape[:axis], window, *leaf.shape[axis:]), leaf.dtype)  # noqa: E731
        return jax.tree.map(like, part)

    tokens, *rest = map(zeros, _AXES, (drawn, *notes))
    return tokens, Notes(*rest)


def _written(old: tuple[Array, Notes], drawn: Array, notes: Notes, number: Any) -> tuple[Array, Notes]:
    """Return a window of branches with token ``number``, in place."""

    def put(axis: int, old: Any, new: Any) -> Any:
        write = lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, number, axis)  # noqa: E731
        return jax.tree.map(write, old, new)

    tokens, *rest = map(put, _AXES, (old[0], *old[1]), (drawn, *notes))
    return tokens, Notes(*rest)


def row_of(network: DraftNetwork, position: Array) -> Array:
    """Return the row of a token at ``position``; the first token of a text has no pair and shares row 0."""
    return position if network.lag == 0 else jnp.maximum(position - network.lag, 0)
