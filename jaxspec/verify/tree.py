"""Trees of drafted tokens: their shape, and the path along which the target's choices confirm them.

Node 0 is the root, the last committed token. A node at depth d stands d positions behind the root; siblings are guesses
at one and the same token of the target. A node's parent has a lower number.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.base import Array
from jaxspec.verify.seen import Seen, is_token
from jaxspec.verify.verdict import Verdict


class Tree(NamedTuple):
    """Drafted tokens that share prefixes; b is B, or 1 where all sequences have one shape.

    Attributes:
        tokens: [B, N] int32, that of the root included.
        depth: of every node: [b, N].
        ancestors: whether node m is n or an ancestor of n, [b, N, N] at (n, m).
        paths: nodes from the root to n, behind n itself n again: [b, N, D+1].
    """

    tokens: Array
    depth: Any
    ancestors: Any
    paths: Any


@dataclass(frozen=True)
class TreeShape:
    """A tree that is the same in every step; static. Nodes are sorted by depth, siblings by rank.

    Attributes:
        parents: of every node; −1 for the root.
        given_ranks: of every node among the tokens behind its parent; default: its number among its siblings.
    """

    parents: tuple[int, ...]
    given_ranks: tuple[int, ...] | None = None

    def tree(self, tokens: Array) -> Tree:
        """Return it with tokens [B, N]."""
        return Tree(tokens, self.depth[None], self.ancestors[None], self.paths[None])

    @property
    def size(self) -> int:
        """N, the root included."""
        return len(self.parents)

    @property
    def max_depth(self) -> int:
        """D."""
        return int(self.depth[-1])

    @cached_property
    def depth(self) -> np.ndarray:
        """Of every node: [N]."""
        depth = np.zeros(self.size, np.int32)
        for node, parent in enumerate(self.parents[1:], start=1):
            depth[node] = depth[parent] + 1
        return depth

    @cached_property
    def ancestors(self) -> np.ndarray:
        """Whether node m is n or an ancestor of n: [N, N]."""
        ancestors = np.eye(self.size, dtype=bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            ancestors[node] |= ancestors[parent]
        return ancestors

    @cached_property
    def paths(self) -> np.ndarray:
        """Nodes from the root to n, behind n itself n again: [N, D+1]."""
        lines = [np.flatnonzero(row) for row in self.ancestors]
        return np.stack([np.pad(line, (0, self.max_depth + 1 - len(line)), "edge") for line in lines]).astype(np.int32)

    @cached_property
    def ranks(self) -> np.ndarray:
        """Rank of every node among the tokens behind its parent: [N]."""
        if self.given_ranks is not None:
            return np.asarray(self.given_ranks)
        return np.asarray([self.parents[:node].count(parent) for node, parent in enumerate(self.parents)])

    def level(self, depth: int) -> range:
        """Return the nodes of a depth."""
        nodes = np.flatnonzero(self.depth == depth)
        return range(int(nodes[0]), int(nodes[-1]) + 1)


def tree_of(tokens: Array, parents: Array, max_depth: int) -> Tree:
    """Return the tree of tokens and parents [B, N], −1 for the root, of at most ``max_depth`` levels behind it."""
    parents, node = jnp.maximum(parents, 0), jnp.broadcast_to(jnp.arange(parents.shape[1])[None], parents.shape)
    up = [node]
    for _ in range(max_depth):
        up.append(jnp.take_along_axis(parents, up[-1], axis=1))
    upwards = jnp.stack(up, axis=2)
    depth = jnp.sum(upwards > 0, axis=2).astype(jnp.int32)
    ancestors = jnp.any(upwards[..., None] == jnp.arange(parents.shape[1])[None, None, None], axis=2)
    index = jnp.maximum(depth[..., None] - jnp.arange(max_depth + 1)[None, None], 0)
    return Tree(tokens, depth, ancestors, jnp.take_along_axis(upwards, index, axis=2))


def seen_along_paths(seen: Seen, tree: Tree) -> Seen:
    """Return marks [B, N, V] of what the text holds at each node: those of the text [B, V], and of the node's path."""
    if seen.marks is None:
        return seen
    marks = is_token(tree.tokens, seen.marks.shape[-1])
    on_path = jnp.any(jnp.asarray(tree.ancestors)[..., None] & marks[:, None], axis=2)
    return Seen(seen.marks[:, None] | on_path)


def longest_path(tree: Tree, choices: Array, position: Array) -> tuple[Verdict, Array]:
    """Walk from the root to the child that carries the target's choice, until there is none.

    Where siblings carry the same token the longest walk counts.

    Args:
        tree: drafted tokens.
        choices: the target's own token after every node: [B, N].
        position: of the root: [B].

    Returns:
        The verdict, A = length of the walk, c = the choice at its end; and the nodes of the walk [B, D+1] from the root
        on, its last node again behind it.
    """
    batch, size = tree.tokens.shape
    paths = jnp.broadcast_to(jnp.asarray(tree.paths), (batch, *tree.paths.shape[1:]))
    depth = jnp.broadcast_to(jnp.asarray(tree.depth), (batch, size))
    parents = jnp.take_along_axis(paths, jnp.maximum(depth - 1, 0)[..., None], axis=2)[..., 0]
    agrees = (tree.tokens == jnp.take_along_axis(choices, parents, axis=1)) | (depth == 0)
    on_path = jax.vmap(lambda row, nodes: row[nodes])(agrees, paths)
    last = jnp.argmax(jnp.where(jnp.all(on_path, axis=2), depth, -1), axis=1)
    accepted = jnp.take_along_axis(depth, last[:, None], axis=1)[:, 0]
    next_token = jnp.take_along_axis(choices, last[:, None], axis=1)[:, 0]
    path = jnp.take_along_axis(paths, last[:, None, None], axis=1)[:, 0]
    return Verdict(accepted, next_token, position + accepted + 1), path
