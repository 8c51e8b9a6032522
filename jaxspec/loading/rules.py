"""Rules between published arrays and one leaf of our parameters, in both directions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxspec.models.config import DecoderConfig

Parts = Sequence[np.ndarray]


class Rule(NamedTuple):
    """The rule of one leaf.

    Attributes:
        names: published names; ``{}`` is replaced by the index of the layer, a second one by that of each expert.
        join: (their arrays, configuration) → the leaf.
        split: (the leaf, configuration) → their arrays.
    """

    names: tuple[str, ...]
    join: Callable[[Parts, DecoderConfig], np.ndarray]
    split: Callable[[np.ndarray, DecoderConfig], Parts]

    def published(self, layer: int | str, experts: int = 0) -> list[str]:
        """Return the names of one layer's arrays; those of experts one behind another."""
        each = [(name, range(experts) if name.count("{}") > 1 else (0,)) for name in self.names]
        return [name.format(layer, expert) for name, numbers in each for expert in numbers]


def same(name: str) -> Rule:
    """Use the published array as the leaf."""
    return Rule((name,), lambda parts, _: parts[0], lambda leaf, _: [leaf])


def one_more(name: str) -> Rule:
    """Add 1 to the published array: Gemma stores scales of norms minus one."""
    return Rule((name,), lambda parts, _: parts[0] + 1, lambda leaf, _: [leaf - 1])


def stacked(*names: str) -> Rule:
    """Stack the published arrays."""
    return Rule(names, lambda parts, _: np.stack(parts), lambda leaf, _: list(leaf))


def of_experts(rule: Rule) -> Rule:
    """Stack what a rule makes of every expert's arrays."""

    def join(parts: Parts, config: DecoderConfig) -> np.ndarray:
        count = len(parts) // len(rule.names)
        return np.stack([rule.join(parts[expert::count], config) for expert in range(count)])

    def split(leaf: np.ndarray, config: DecoderConfig) -> Parts:
        experts = [rule.split(one, config) for one in leaf]
        return [part for parts in zip(*experts, strict=True) for part in parts]

    return Rule(rule.names, join, split)


def heads(pattern: str) -> Rule:
    """Group rows of queries, keys and values by key-value head: [G, H/G + 2, head_size, …]."""

    def join(parts: Parts, config: DecoderConfig) -> np.ndarray:
        shape = config.num_kv_heads, -1, config.head_size
        return np.concatenate([part.reshape(*shape, *part.shape[1:]) for part in parts], axis=1)

    def split(leaf: np.ndarray, config: DecoderConfig) -> Parts:
        return [part.reshape(-1, *leaf.shape[3:]) for part in (leaf[:, :-2], leaf[:, -2], leaf[:, -1])]

    return Rule(tuple(pattern.format("{}", letter) for letter in "qkv"), join, split)


def interleaved_heads(name: str) -> Rule:
    """Group one published array in which the rows of every head's query, key and value lie behind each other."""

    def join(parts: Parts, config: DecoderConfig) -> np.ndarray:
        return parts[0].reshape(config.num_kv_heads, -1, config.head_size, *parts[0].shape[1:])

    return Rule((name,), join, lambda leaf, _: [leaf.reshape(-1, *leaf.shape[3:])])


def transposed(rule: Rule) -> Rule:
    """Transpose the published matrices: GPT-2 stores them as [inputs, outputs]."""
    turn = lambda parts: [part.T for part in parts]  # noqa: E731
    return Rule(
        rule.names,
        lambda parts, config: rule.join(turn(parts), config),
        lambda leaf, config: turn(rule.split(leaf, config)),
    )


def fused(name: str, rule: Rule) -> Rule:
    """Cut one published array into the arrays of a rule, which lie behind each other: of queries, keys and values."""

    def join(parts: Parts, config: DecoderConfig) -> np.ndarray:
        rows = np.cumsum([config.num_heads, config.num_kv_heads]) * config.head_size
        return rule.join(np.split(parts[0], rows), config)

    return Rule((name,), join, lambda leaf, config: [np.concatenate(rule.split(leaf, config))])


def fused_gate_up(name: str) -> Rule:
    """Cut one published array into halves: the gate's rows, then those that it multiplies."""
    return Rule(
        (name,),
        lambda parts, _: parts[0].reshape(2, -1, *parts[0].shape[1:]),
        lambda leaf, _: [leaf.reshape(-1, *leaf.shape[2:])],
    )


def table_from_two(name: str) -> Rule:
    """Drop the first two rows, which belong to padding in OPT's table of positions."""
    return Rule((name,), lambda parts, _: parts[0][2:], lambda leaf, _: [np.pad(leaf, ((2, 0), (0, 0)))])
