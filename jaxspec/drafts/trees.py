"""Trees that a draft grows: of one shape in every step, or of the nodes that the draft is surest of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.drafts._grow import GrowTask, RunOrder, run_level
from jaxspec.models.base import Array, Cache
from jaxspec.verify.tree import Tree, TreeShape, tree_of

#: Most nodes of a tree.
MANY_NODES = 1024


class Grown(NamedTuple):
    """A tree that was grown.

    Attributes:
        drawn: what ``TreePolicy.tree`` makes the tree of.
        rows: behind the root's, in which each node was run, 0 for one that was not: [B, N]; None: node n in row n.
        cache: of the draft.
    """

    drawn: Any
    rows: Array | None
    cache: Cache


class TreePolicy(Protocol):
    """Which trees are drafted; static in compiled programs."""

    @property
    def size(self) -> int:
        """N, the root included."""

    @property
    def max_depth(self) -> int:
        """D."""

    @property
    def most_children(self) -> int:
        """Most children of a node."""

    @property
    def num_rows(self) -> int:
        """Rows of the draft's cache that growing takes."""

    def tree(self, drawn: Any) -> Tree:
        """Return the tree to verify."""

    def grow(self, task: GrowTask, cache: Cache) -> Grown:
        """Grow a tree in D passes of the draft; the nodes of depth D are not run."""


@dataclass(frozen=True)
class Static(TreeShape):
    """A tree of one shape: at every node the draft's most likely tokens, by rank."""

    @property
    def most_children(self) -> int:
        """Ranks that are drafted."""
        return 1 + int(self.ranks.max())

    @property
    def num_rows(self) -> int:
        """A row for every node."""
        return self.size

    def grow(self, task: GrowTask, cache: Cache) -> Grown:
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


class Drawn(NamedTuple):
    """A tree of no fixed shape: tokens and parents of its nodes, [B, N]; −1 for the root."""

    tokens: Array
    parents: Array


class _Pool(NamedTuple):
    """Candidates in the order in which they were found, [B, P]: token, value, parent among them (−1: the root), row."""

    tokens: Array
    values: Array
    parents: Array
    rows: Array

    def add(self, tokens: Array, values: Array, parents: Array) -> "_Pool":
        """Add candidates [B, m] that have not been run."""
        new = _Pool(tokens, values, parents, jnp.zeros_like(tokens))
        return _Pool(*(jnp.concatenate(both, axis=1) for both in zip(self, new, strict=True)))

    def ran(self, index: Array, first: int) -> "_Pool":
        """Note that candidates ``index`` [B, k] have rows ``first`` and behind."""
        rows = jnp.arange(first, first + index.shape[1], dtype=jnp.int32)
        return self._replace(rows=jax.vmap(lambda old, at: old.at[at].set(rows))(self.rows, index))


@dataclass(frozen=True)
class Dynamic:
    """The N − 1 candidates of largest value, the product of the draft's probabilities along a path.

    The ``top_k`` best candidates of each depth are run, and each gives ``top_k`` candidates of the next one. Children
    are ranked and valued by the rule's scores, with the target's noise in them under ``match``: any choice is lossless.

    Source: EAGLE-2 (arXiv 2406.16858), §4.
    """

    top_k: int
    depth: int
    nodes: int

    @property
    def size(self) -> int:
        """N, the root included."""
        return self.nodes

    @property
    def max_depth(self) -> int:
        """D."""
        return self.depth

    @property
    def most_children(self) -> int:
        """Candidates of a node."""
        return self.top_k

    @property
    def num_rows(self) -> int:
        """A row for every candidate that is run."""
        return 1 + (self.depth - 1) * self.top_k

    def tree(self, drawn: Drawn) -> Tree:
        """Return the tree with its ancestors and paths."""
        return tree_of(drawn.tokens, drawn.parents, self.depth)

    def grow(self, task: GrowTask, cache: Cache) -> Grown:
        """Expand and rerank."""
        level, batch = task.level(), len(task.root.token)
        depth = np.concatenate([[0], np.repeat(np.arange(1, self.depth), self.top_k)]).astype(np.int32)
        ancestors = jnp.broadcast_to(jnp.eye(len(depth), dtype=bool)[None], (batch, len(depth), len(depth)))
        none = jnp.zeros((batch, 0), jnp.int32)
        pool, first = _Pool(none, none.astype(jnp.float32), none, none), 0
        above, value, node_rows = jnp.full((batch, 1), -1), jnp.zeros((batch, 1)), jnp.zeros((batch, 1), jnp.int32)
        for number in range(self.depth):
            logits, following, cache = run_level(task, cache, level, RunOrder(depth, ancestors), first)
            proposer, position = task.children_at(number, level.seen)
            found, values = proposer.valued(logits, position, self.top_k)
            values, start = (value[..., None] + values).reshape(batch, -1), pool.tokens.shape[1]
            pool = pool.add(found.reshape(batch, -1), values, jnp.repeat(above, self.top_k, axis=1))
            if number + 1 == self.depth:
                break
            value, best = jax.lax.top_k(values, self.top_k)
            parents, above, first = best // self.top_k, start + best, 1 + number * self.top_k
            tokens = jnp.take_along_axis(pool.tokens, above, axis=1)
            level, pool = level.below(following, parents, tokens), pool.ran(above, first)
            parent_rows = jnp.take_along_axis(node_rows, parents, axis=1)
            own = jnp.take_along_axis(ancestors, parent_rows[..., None], axis=1)
            own |= jnp.eye(len(depth), dtype=bool)[None, first : first + self.top_k]
            ancestors = ancestors.at[:, first : first + self.top_k].set(own)
            node_rows = jnp.broadcast_to(jnp.arange(first, first + self.top_k)[None], best.shape)
        return self._reranked(task, pool, cache)

    def _reranked(self, task: GrowTask, pool: _Pool, cache: Cache) -> Grown:
        """Keep the candidates of largest value, each with its ancestors, which are as large and come before it."""
        kept = jnp.sort(jax.lax.top_k(pool.values, self.nodes - 1)[1], axis=1)
        pick = lambda values: jnp.take_along_axis(values, kept, axis=1)  # noqa: E731
        parents = 1 + jax.vmap(jnp.searchsorted)(kept, pick(pool.parents)).astype(jnp.int32)
        parents = jnp.where(pick(pool.parents) < 0, 0, parents)
        tokens = jnp.concatenate([task.root.token[:, None], pick(pool.tokens)], axis=1)
        parents = jnp.pad(parents, ((0, 0), (1, 0)), constant_values=-1)
        return Grown(Drawn(tokens, parents), jnp.pad(pick(pool.rows), ((0, 0), (1, 0))), cache)


def static(shape: Sequence[int] | Sequence[Sequence[int]]) -> Static:
    """Return a tree that is the same in every step.

    Args:
        shape: either the children of every node at each depth: ``static((4, 2, 1))`` has 4, 8 and 8 nodes at depths 1,
            2 and 3; or paths of ranks, as Medusa and EAGLE publish them: (0, 2) is the third likeliest token behind the
            likeliest one. A path needs those to the nodes along it.

    Raises:
        ValueError: no level, fewer than one child, a path without the one before it or twice, or more than 1,024 nodes.
    """
    if len(shape) and not isinstance(shape[0], int | np.integer):
        return _of_paths([tuple(int(rank) for rank in path) for path in shape])  # type: ignore[union-attr]
    counts = [whole("children of a node", count, 1, MANY_NODES) for count in shape]
    if not counts:
        raise ValueError("expected at least one level of a tree, got none; for no drafts use jaxspec.autoregressive")
    parents, level = [-1], [0]
    for count in counts:
        start = len(parents)
        parents += [node for node in level for _ in range(count)]
        level = list(range(start, len(parents)))
        if len(parents) > MANY_NODES:
            raise ValueError(f"expected at most {MANY_NODES} nodes of a tree, got more with children {tuple(counts)}")
    return Static(tuple(parents))


def _of_paths(paths: list[tuple[int, ...]]) -> Static:
    ordered = [(), *sorted(paths, key=lambda path: (len(path), path))]
    nodes = {path: node for node, path in enumerate(ordered)}
    for path in ordered[1:]:
        if not path or path[:-1] not in nodes or min(path) < 0:
            raise ValueError(f"expected the path {path[:-1]} of its parent for every path of ranks >= 0, got {path}")
    if len(nodes) != len(ordered) or len(nodes) > MANY_NODES:
        raise ValueError(f"expected different paths, at most {MANY_NODES - 1} of them, got {len(paths)}")
    parents = [-1, *(nodes[path[:-1]] for path in ordered[1:])]
    return Static(tuple(parents), (0, *(path[-1] for path in ordered[1:])))


def chain(window: int) -> Static:
    """Return a chain of γ tokens as a tree."""
    return static((1,) * whole("window", window, 1, MANY_NODES - 1))


def dynamic(top_k: int = 10, depth: int = 6, nodes: int = 60) -> Dynamic:
    """Return EAGLE-2's trees: the ``nodes`` − 1 candidates that the draft is surest of, behind the root.

    Args:
        top_k: nodes of a depth that are run, and children of each.
        depth: D, most tokens of a path.
        nodes: N, the root included.

    Raises:
        ValueError: a number below 1 (2 for ``nodes``), or more nodes than there are candidates.

    Source: EAGLE-2 (arXiv 2406.16858): 10, 6, 60 for targets of 7 or 8 billion parameters, 50 nodes for 13, 48 for 70.
    """
    top_k, depth = whole("top_k", top_k, 1, MANY_NODES), whole("depth of a tree", depth, 1, MANY_NODES)
    candidates = top_k + (depth - 1) * top_k**2
    most = min(MANY_NODES, 1 + candidates)
    reason = f"there are {candidates} candidates behind the root"
    nodes = whole("nodes of a tree", nodes, 2, most, reason if candidates < MANY_NODES else "no tree may have more")
    return Dynamic(top_k, depth, nodes)
