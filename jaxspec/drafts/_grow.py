"""Growing a tree with a draft's network, level by level, over its own key-value cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafts._roll import row_of
from jaxspec.drafts.networks import DraftNetwork
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Along, Pending
from jaxspec.models.attention import TreeRows, in_tree
from jaxspec.models.base import Array, Params
from jaxspec.verify.seen import Seen


class GrowTask(NamedTuple):
    """A tree to grow.

    Attributes:
        network: of the draft.
        params: of the draft.
        root: the last committed token: [B].
        inputs: what comes with it: [D', B, 1].
        proposer: how children are ranked; its ``seen`` marks [B, V] hold the root.
        along: tokens that are run along with the root.
    """

    network: DraftNetwork
    params: Params
    root: Pending
    inputs: Any
    proposer: Proposer
    along: Along | None

    def level(self) -> "Level":
        """Return the level of the root."""
        return Level(self.root.token[:, None], self.inputs, self.proposer.seen.as_branch())

    def children_at(self, depth: int, seen: Seen) -> tuple[Proposer, Array]:
        """Return the proposer and the position [B] of children of nodes at ``depth``."""
        return self.proposer._replace(seen=seen), self.root.position + depth + 1


class Level(NamedTuple):
    """Nodes of one depth.

    Attributes:
        tokens: [B, n].
        inputs: what comes with them: [D', B, n].
        seen: tokens that their paths hold: marks [B, n, V].
    """

    tokens: Array
    inputs: Any
    seen: Seen

    def below(self, following: Any, parents: Array, tokens: Array) -> "Level":
        """Return the level of children: ``parents`` [B, m] among these nodes, ``following`` what comes behind each."""
        inputs = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, parents[None], axis=2), following)
        return Level(tokens, inputs, self.seen.at(parents).with_token(tokens))


class RunOrder(NamedTuple):
    """Nodes in the order in which they are run.

    Attributes:
        depth: of each: [N].
        ancestors: [b, N, N], of the nodes that have been run so far.
    """

    depth: np.ndarray
    ancestors: Any


def run_level(
    task: GrowTask, cache: tuple[TreeRows, ...], level: Level, order: RunOrder, first: int
) -> tuple[Array, Any, tuple[TreeRows, ...]]:
    """Run the nodes of one level, ``first`` and behind in their order.

    Returns:
        Logits behind each, [V, B, n], what comes with their children, [D', B, n], and the cache.
    """
    network, count = task.network, level.tokens.shape[1]
    nodes, depth = range(first, first + count), int(order.depth[first])
    start, tokens, inputs = row_of(network, task.root.position), level.tokens, level.inputs
    positions = start[:, None] + jnp.asarray(order.depth[None, first : first + count])
    along = task.along if first == 0 else None
    if along is not None:
        tokens, positions, inputs = along.before(tokens, positions, inputs)
    attend = in_tree(start, order.depth[None], order.ancestors, nodes, None if along is None else along.rows)
    ran: Any = network.run(task.params, inputs, tokens, positions, cache, attend, depth)  # type: ignore[arg-type]
    x, cache = ran[0][:, :, -count:], ran[1]
    return network.logits(task.params, x, depth), network.following(task.params, x), cache
