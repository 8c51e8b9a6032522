"""What every kind of tree that a draft grows has."""

from typing import Any, NamedTuple, Protocol

from jaxspec.drafts._grow import GrowTask
from jaxspec.models.base import Array, Cache
from jaxspec.verify.tree import Tree


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
