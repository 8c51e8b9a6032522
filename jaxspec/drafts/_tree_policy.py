"""What every kind of tree that a draft grows has."""

from typing import Any, NamedTuple, Protocol

from jaxspec.drafts._grow import GrowTask
from jaxspec.models.attention import TreeRows
from jaxspec.models.base import Array
from jaxspec.verify.tree import Tree


class Grown(NamedTuple):
    """A tree that was grown.

    Attributes:
        drawn: what ``TreePolicy.tree`` makes the tree of.
        order: number of each node in the order in which they were run, 0 for one that was not: [B, N]; None: n.
        cache: of the draft.
    """

    drawn: Any
    order: Array | None
    cache: tuple[TreeRows, ...]


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

    def tree(self, drawn: Any) -> Tree:
        """Return the tree to verify."""

    def grow(self, task: GrowTask, cache: tuple[TreeRows, ...]) -> Grown:
        """Grow a tree in D passes of the draft; the nodes of depth D are not run."""
