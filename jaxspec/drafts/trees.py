"""Trees that a draft grows: of one shape in every step, or of the nodes that the draft is surest of."""

import heapq
from collections.abc import Sequence

import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.drafts._dynamic_tree import Dynamic
from jaxspec.drafts._static_tree import MANY_NODES, Static, of_paths
from jaxspec.drafts._tree_policy import TreePolicy

__all__ = ["EAGLE_25", "MC_SIM_7B_63", "TreePolicy", "chain", "dynamic", "fitted", "static"]


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
        return of_paths([tuple(int(rank) for rank in path) for path in shape])  # type: ignore[union-attr]
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


def chain(window: int) -> Static:
    """Return a chain of γ tokens as a tree."""
    return static((1,) * whole("window", window, 1, MANY_NODES - 1))


def dynamic(top_k: int = 10, depth: int = 6, nodes: int = 60, sharpness: float = 1.0) -> Dynamic:
    """Return EAGLE-2's trees: the ``nodes`` − 1 candidates that the draft is surest of, behind the root.

    Args:
        top_k: nodes of a depth that are run, and children of each.
        depth: D, most tokens of a path.
        nodes: N, the root included.
        sharpness: β; 1 is EAGLE-2. Where greedy text is far more predictable than the draft's probabilities say, as
            with characters, 4 to 5 make deeper trees, which accept more.

    Raises:
        ValueError: a number below 1 (2 for ``nodes``), more nodes than there are candidates, or a sharpness that is not
            a number above 0.

    Source: EAGLE-2 (arXiv 2406.16858): 10, 6, 60 for targets of 7 or 8 billion parameters, 50 nodes for 13, 48 for 70.
    """
    top_k, depth = whole("top_k", top_k, 1, MANY_NODES), whole("depth of a tree", depth, 1, MANY_NODES)
    candidates = top_k + (depth - 1) * top_k**2
    most = min(MANY_NODES, 1 + candidates)
    reason = f"there are {candidates} candidates behind the root"
    nodes = whole("nodes of a tree", nodes, 2, most, reason if candidates < MANY_NODES else "no tree may have more")
    if not 0 < sharpness < np.inf:
        raise ValueError(f"expected a finite sharpness > 0, got {sharpness}")
    return Dynamic(top_k, depth, nodes, float(sharpness))


def fitted(accuracy: np.ndarray, nodes: int) -> Static:
    """Return the static tree of ``nodes`` − 1 paths that accepts most tokens, if ranks are right independently.

    A path (r_1, …, r_d) is right with the probability Π_i accuracy[i − 1, r_i]; the paths of largest probability are
    taken. The tree accepts their sum on average.

    Args:
        accuracy: how often the draft's r-th likeliest token at depth d + 1 is the target's, where the tokens before it
            are: [D, K], from ``training.rank_accuracy``.
        nodes: N, the root included; fewer if there are not as many paths.

    Raises:
        ValueError: not a table [D, K] of probabilities, or a number of nodes that is not from 2 to 1,024.

    Source: Cai et al., Medusa (arXiv 2401.10774), §2.3.3.
    """
    table, count = np.asarray(accuracy, float), whole("nodes of a tree", nodes, 2, MANY_NODES)
    if table.ndim != 2 or not table.size or not np.all((table >= 0) & (table <= 1)):
        raise ValueError(f"expected accuracy [D, K] from 0 to 1, got {accuracy!r}; use training.rank_accuracy")
    paths: list[tuple[int, ...]] = []
    found: list[tuple[float, int, tuple[int, ...]]] = [(-1.0, 0, ())]
    while found and len(paths) < count:
        value, depth, path = heapq.heappop(found)
        paths.append(path)
        for rank, right in enumerate(table[depth] if depth < len(table) else ()):
            heapq.heappush(found, (value * right, depth + 1, (*path, rank)))
    return of_paths(paths[1:])


def _published(paths: str) -> Static:
    return of_paths([tuple(int(rank) for rank in path) for path in paths.split()])


MC_SIM_7B_63 = _published(
    "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 30 31 40 50 60 70 80 90 000 "
    "001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001"
)
"""Medusa's and Hydra's tree of 63 nodes behind the root, depth 4 (FasterDecoding/Medusa, ``mc_sim_7b_63``)."""

EAGLE_25 = _published("0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001")
"""EAGLE's tree of 25 nodes behind the root, depth 5 (SafeAILab/EAGLE, ``choices.py``)."""
