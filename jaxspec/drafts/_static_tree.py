"""Trees of one shape in every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.drafts._grow import GrowTask, RunOrder, run_level
from jaxspec.drafts._tree_policy import Grown
from jaxspec.models.attention import TreeRows
from jaxspec.verify.tree import TreeShape

#: Most nodes of a tree.
MANY_NODES = 1024


@dataclass(frozen=True)
class Static(TreeShape):
    """A tree of one shape: at every node the draft's most likely tokens, by rank."""

    @property
    def most_children(self) -> int:
        """Ranks that are drafted."""
        return 1 + int(self.ranks.max())

    def grow(self, task: GrowTask, cache: tuple[TreeRows, ...]) -> Grown:
        """Take the children by rank."""
        level, rows, tokens = task.level(), RunOrder(self.depth, self.ancestors[None]), task.root.token[:, None]
        for depth in range(self.max_depth):
            above, below = self.level(depth), self.level(depth + 1)
            logits, following, cache = run_level(task, cache, level, rows, above.start)
            proposer, position = task.children_at(depth, level.seen)
            ranks = jnp.asarray([int(self.ranks[node]) for node in below])
            children = proposer.children(logits, position, 1 + max(int(self.ranks[node]) for node in below))
            parents = jnp.asarray([self.parents[node] - above.start for node in below], jnp.int32)
            drawn = children[:, parents, ranks]
            level = level.below(following, jnp.broadcast_to(parents[None], drawn.shape), drawn)
            tokens = jnp.concatenate([tokens, drawn], axis=1)
        return Grown(tokens, None, cache)


def of_paths(paths: Sequence[tuple[int, ...]]) -> Static:
    """Return the tree of paths of ranks, each with the path before it."""
    ordered = [(), *sorted(paths, key=lambda path: (len(path), path))]
    nodes = {path: node for node, path in enumerate(ordered)}
    for path in ordered[1:]:
        if not path or path[:-1] not in nodes or min(path) < 0:
            raise ValueError(f"expected the path {path[:-1]} of its parent for every path of ranks >= 0, got {path}")
    if len(nodes) != len(ordered) or len(nodes) > MANY_NODES:
        raise ValueError(f"expected different paths, at most {MANY_NODES - 1} of them, got {len(paths)}")
    parents = [-1, *(nodes[path[:-1]] for path in ordered[1:])]
    return Static(tuple(parents), (0, *(path[-1] for path in ordered[1:])))
