"""Growing a tree with a language model, level by level, over its own key-value cache."""

import jax.numpy as jnp

from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Pending
from jaxspec.models.attention import in_tree
from jaxspec.models.base import Array, Cache, Network, Params
from jaxspec.verify.tree import TreeShape, seen_along_paths


def grow(
    network: Network,
    params: Params,
    cache: Cache,
    root: Pending,
    shape: TreeShape,
    proposer: Proposer,
    pending: Pending | None,
) -> tuple[Array, Cache]:
    """Grow a tree in D passes: that over the nodes of depth d gives their children.

    Args:
        network: the draft.
        params: its parameters.
        cache: rows of all tokens before the root; the row of node n becomes ``root.position`` + n.
        root: the last committed token: [B].
        shape: of the tree.
        proposer: how children are ranked; its ``seen`` marks [B, V] hold the root.
        pending: a token that is run along with the root so that the cache gets its row.

    Returns:
        Tokens [B, N], and the cache.
    """

    def run(cache: Cache, nodes: range, tokens: Array, pending: Pending | None) -> tuple[Array, Cache]:
        """Logits [V, B, n] after the ``nodes`` of one depth, and the cache with their rows."""
        positions = root.position[:, None] + jnp.asarray(shape.depth[None, nodes.start : nodes.stop])
        if pending is not None:
            tokens = jnp.concatenate([pending.token[:, None], tokens], axis=1)
            positions = jnp.concatenate([pending.position[:, None], positions], axis=1)
        beside = None if pending is None else pending.position
        attend = in_tree(root.position, shape.depth[None], shape.ancestors[None], nodes, beside)
        x, layers = network.embed(params, tokens), range(network.config.num_layers)
        x, cache = network.blocks(params, x, positions, cache, attend, layers)
        return network.logits(params, x[:, :, -len(nodes) :]), cache

    tokens = root.token[:, None]
    for depth in range(shape.max_depth):
        nodes, below = shape.level(depth), shape.level(depth + 1)
        logits, cache = run(cache, nodes, tokens[:, nodes.start :], pending if depth == 0 else None)
        padded = jnp.pad(tokens, ((0, 0), (0, shape.size - tokens.shape[1])))
        seen = seen_along_paths(proposer.seen, shape.tree(padded)).columns(nodes)
        most = 1 + max(int(shape.ranks[node]) for node in below)
        children = proposer._replace(seen=seen).children(logits, root.position + depth + 1, most)
        parents = jnp.asarray([shape.parents[node] - nodes.start for node in below])
        ranks = jnp.asarray([int(shape.ranks[node]) for node in below])
        tokens = jnp.concatenate([tokens, children[:, parents, ranks]], axis=1)
    return tokens, cache
