"""Trees of the nodes that the draft is surest of."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafts._grow import GrowTask, RunOrder, run_level
from jaxspec.drafts._tree_policy import Grown
from jaxspec.models.attention import TreeRows
from jaxspec.models.base import Array
from jaxspec.verify.tree import Tree, tree_of


class Drawn(NamedTuple):
    """A tree of no fixed shape: tokens and parents of its nodes, [B, N]; −1 for the root."""

    tokens: Array
    parents: Array


class _Pool(NamedTuple):
    """Candidates as they were found, [B, P]: token, value, parent among them (−1: the root), number in run order."""

    tokens: Array
    values: Array
    parents: Array
    order: Array

    def add(self, tokens: Array, values: Array, parents: Array) -> "_Pool":
        """Add candidates [B, m] that have not been run."""
        new = _Pool(tokens, values, parents, jnp.zeros_like(tokens))
        return _Pool(*(jnp.concatenate(both, axis=1) for both in zip(self, new, strict=True)))

    def ran(self, index: Array, first: int) -> "_Pool":
        """Note that candidates ``index`` [B, k] were run as number ``first`` and behind."""
        numbers = jnp.arange(first, first + index.shape[1], dtype=jnp.int32)
        return self._replace(order=jax.vmap(lambda old, at: old.at[at].set(numbers))(self.order, index))


@dataclass(frozen=True)
class Dynamic:
    """The N − 1 candidates of largest value, the product of the draft's probabilities along a path.

    The ``top_k`` best candidates of each depth are run, and each gives ``top_k`` candidates of the next one. Children
    are ranked and valued by the rule's scores, with the target's noise in them under ``match``: any choice is lossless.
    A candidate's probability is softmax(β·scores): a greedy target takes the likeliest token, and a draft's likeliest
    token is that one more often than its probability says.

    Source: EAGLE-2 (arXiv 2406.16858), §4.
    """

    top_k: int
    depth: int
    nodes: int
    sharpness: float = 1.0

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

    def tree(self, drawn: Drawn) -> Tree:
        """Return the tree with its ancestors and paths."""
        return tree_of(drawn.tokens, drawn.parents, self.depth)

    def grow(self, task: GrowTask, cache: tuple[TreeRows, ...]) -> Grown:
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
            found, values = proposer.valued(logits, position, self.top_k, self.sharpness)
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

    def _reranked(self, task: GrowTask, pool: _Pool, cache: tuple[TreeRows, ...]) -> Grown:
        """Keep the candidates of largest value, each with its ancestors, which are as large and come before it."""
        kept = jnp.sort(jax.lax.top_k(pool.values, self.nodes - 1)[1], axis=1)
        pick = lambda values: jnp.take_along_axis(values, kept, axis=1)  # noqa: E731
        parents = 1 + jax.vmap(jnp.searchsorted)(kept, pick(pool.parents)).astype(jnp.int32)
        parents = jnp.where(pick(pool.parents) < 0, 0, parents)
        tokens = jnp.concatenate([task.root.token[:, None], pick(pool.tokens)], axis=1)
        parents = jnp.pad(parents, ((0, 0), (1, 0)), constant_values=-1)
        return Grown(Drawn(tokens, parents), jnp.pad(pick(pool.order), ((0, 0), (1, 0))), cache)
