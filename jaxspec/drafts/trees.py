"""Shapes of trees that a draft grows."""

from collections.abc import Sequence

from jaxspec.core.arguments import whole
from jaxspec.verify.tree import TreeShape

#: Most nodes of a tree.
MANY_NODES = 1024


def static(fan_out: Sequence[int]) -> TreeShape:
    """Return a tree in which every node at depth d has ``fan_out[d]`` children, the draft's most likely tokens there.

    ``static((4, 2, 1))`` has 4, 8 and 8 nodes at depths 1, 2 and 3; ``static((1,) * γ)`` is a chain of γ tokens.

    Raises:
        ValueError: no level, fewer than one child, or more than 1,024 nodes.
    """
    counts = [whole("children of a node", count, 1, MANY_NODES) for count in fan_out]
    if not counts:
        raise ValueError("expected at least one level of a tree, got none; for no drafts use jaxspec.autoregressive")
    parents, level = [-1], [0]
    for count in counts:
        start = len(parents)
        parents += [node for node in level for _ in range(count)]
        level = list(range(start, len(parents)))
        if len(parents) > MANY_NODES:
            raise ValueError(f"expected at most {MANY_NODES} nodes of a tree, got more with children {tuple(counts)}")
    return TreeShape(tuple(parents))
