"""Trees of drafts: plain decoding's tokens, whatever the shape, and more of them accepted than of a chain."""

from functools import partial
from itertools import product

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec import Sampling, zoo
from jaxspec.drafts import prompt_lookup, trees
from jaxspec.verify import acceptance
from jaxspec.verify.tree import longest_path
from tests.support.jaxspec import models, pairs
from tests.support.jaxspec.fallback_rows import SAMPLED, sampled

SHAPE = trees.static((4, 2, 1))
COLD, WARM = Sampling(), Sampling(temperature=1.0, seed=7)
decode = partial(jaxspec.generate, max_new_tokens=models.NEW_TOKENS)


def walk(tokens, parents, choices, node=0):
    """The path from a node on, in plain Python; the longest one where siblings carry the same token."""
    right = [n for n, parent in enumerate(parents) if parent == node and tokens[n] == choices[node]]
    return [node, *max((walk(tokens, parents, choices, child) for child in right), key=len, default=[])]


def test_a_static_tree_has_the_levels_that_were_asked_for():
    assert [len(SHAPE.level(depth)) for depth in range(4)] == [1, 4, 8, 8]
    assert SHAPE.parents[:7] == (-1, 0, 0, 0, 0, 1, 1)
    assert SHAPE.ranks[1:9].tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert SHAPE.paths[-1].tolist() == [0, 4, 12, 20]
    np.testing.assert_array_equal(SHAPE.ancestors.sum(axis=1), SHAPE.depth + 1)


@pytest.mark.parametrize("fan_out", [(4, 2, 1), (1, 1, 1), (3,)])
def test_the_longest_path_is_that_of_a_walk(fan_out):
    shape, random = trees.static(fan_out), np.random.default_rng(1)
    tokens, choices = (random.integers(3, size=(300, shape.size)).astype(np.int32) for _ in range(2))
    position = random.integers(50, size=300).astype(np.int32)
    verdict, path = jax.jit(lambda t, c, p: longest_path(shape.tree(t), c, p))(tokens, choices, position)
    for row in range(300):
        expected = walk(tokens[row], shape.parents, choices[row])
        kept = [tokens[row, node] for node in path[row].tolist()]
        assert [kept[d] for d in range(1, len(expected))] == [tokens[row, node] for node in expected[1:]]
        assert verdict.num_accepted[row] == len(expected) - 1
        assert verdict.position[row] == position[row] + len(expected)
        assert path[row].tolist()[len(expected) - 1 :] == [path[row, -1]] * (shape.max_depth + 2 - len(expected))


@pytest.mark.parametrize("fan_out", [(4, 2, 1), pytest.param((2, 3), marks=pytest.mark.slow)])
def test_tokens_are_those_of_plain_decoding(fan_out):
    method = models.speculative(tree=trees.static(fan_out))
    assert decode(method, models.PROMPTS).tokens == models.expected()
    assert decode(method, pairs.PROMPTS, sampling=SAMPLED).tokens == sampled()


def test_a_chain_as_a_tree_takes_the_steps_of_a_chain():
    for sampling in (COLD, WARM):
        found, chain = (
            decode(method, pairs.PROMPTS[:3], sampling=sampling)
            for method in (models.speculative(tree=trees.static((1, 1, 1))), models.speculative(3))
        )
        assert found.tokens == chain.tokens
        assert (found.stats.steps, found.stats.verified) == (chain.stats.steps, chain.stats.verified)


@pytest.mark.parametrize("name", ["mistral", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma3", "opt"))])
def test_sliding_windows_and_learned_positions(name):
    """The row of a node is not its position: both count by position."""
    method = jaxspec.speculative(pairs.target(name), pairs.draft(name), tree=SHAPE)
    for temperature in (0.0, 1.0):
        sampling = pairs.sampling_of(name, 3, 3, temperature)
        expected = decode(pairs.autoregressive(name), pairs.PROMPTS[:3], sampling=sampling).tokens
        found = decode(method, pairs.PROMPTS[:3], sampling=sampling)
        assert all(parting.gap < pairs.TIE for parting in pairs.partings(name, found.tokens, expected, sampling))
        assert found.stats.accepted > 0


def test_prompts_that_are_read_in_chunks():
    prompts = [(np.arange(size) * 7 % models.VOCAB).tolist() for size in (255, 300, 513)]
    plain = jaxspec.autoregressive(models.target())
    assert (
        decode(models.speculative(tree=SHAPE), prompts, sampling=WARM).tokens
        == decode(plain, prompts, sampling=WARM).tokens
    )


def test_a_fitted_tree_accepts_most_of_all_trees_of_its_size():
    random = np.random.default_rng(3)
    for _ in range(20):
        accuracy = random.dirichlet(np.ones(4), 3)[:, :3]
        every = [path for depth in (1, 2, 3) for path in product(range(3), repeat=depth)]
        chance = {path: np.prod([accuracy[d, r] for d, r in enumerate(path)]) for path in every}
        shape = trees.fitted(accuracy, 12)
        paths = [tuple(shape.ranks[node] for node in line if node) for line in map(np.unique, shape.paths[1:])]
        assert sum(chance[path] for path in paths) == pytest.approx(sum(sorted(chance.values())[-11:]))
    assert trees.fitted([[0.6, 0.3]], 9).parents == (-1, 0, 0)


@pytest.mark.slow
def test_a_tree_accepts_more_than_a_chain_of_its_depth():
    pair = zoo.load()
    prompts = ["ROMEO:\nWhat light", "KING HENRY:\nOnce more", "First Citizen:\nWe are"]
    plain = jaxspec.autoregressive(pair.target)
    methods = [jaxspec.speculative(pair.target, pair.draft, 3, tree=tree) for tree in (None, SHAPE)]
    for sampling in (COLD, WARM):
        chain, tree = (jaxspec.generate(method, prompts, 48, sampling=sampling) for method in methods)
        assert chain.tokens == tree.tokens == jaxspec.generate(plain, prompts, 48, sampling=sampling).tokens
        assert tree.stats.accepted_length > chain.stats.accepted_length


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.speculative(tree=SHAPE, acceptance=acceptance.ratio()), r"expected acceptance.match\(\) with"),
        (lambda: models.speculative(tree=SHAPE, draft=prompt_lookup()), "expected a draft that can grow a tree"),
        (lambda: models.speculative(tree=trees.static((12,))), "at most 11 children"),
        (lambda: trees.static(()), "at least one level"),
        (lambda: trees.static((2, 0)), "children of a node"),
        (lambda: trees.static((64, 64)), "at most 1024 nodes"),
        (lambda: trees.fitted([0.5, 0.1], 4), r"expected accuracy \[D, K\]"),
        (lambda: trees.fitted([[1.5]], 4), "from 0 to 1"),
        (lambda: trees.fitted([[0.5]], 1), "nodes of a tree"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
