"""Predict a step from two configurations and a table of chips: bytes, operations and messages, nothing compiled.

    T(layers, tokens) = max(bytes / (n·η·bandwidth), operations / (n·η·peak)) + 2·layers·latency    (the last if n > 1)

Bytes are the matrices of the layers, of the head where logits are made, and the rows of the cache in use; operations
two for each entry of a matrix and token, and those of attention. A model lies on n chips; η is the share of the
datasheet that programs reach. Of a mixture of experts all experts that the tokens can choose are read.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.analysis.cost import ProgramTimes
from jaxspec.analysis.whatif import POLICIES, REFERENCE, Assumptions, Point, speed_ups
from jaxspec.devices.chips import Chip
from jaxspec.loading.parameters import like_params, parameter_bytes
from jaxspec.models.config import DecoderConfig


class Machine(NamedTuple):
    """Chips that a model is divided over.

    Attributes:
        chip: of which kind.
        number: n.
        efficiency: η. Default: what the 7B target reached on an H200 (``benchmarks/README.md``), 3.95 of 4.8 TB/s.
        latency: seconds of an all-reduce of few bytes; an assumption.
        launch: seconds of a program besides its work; an assumption.
    """

    chip: Chip
    number: int = 1
    efficiency: float = 0.82
    latency: float = 5e-6
    launch: float = 20e-6


class Workload(NamedTuple):
    """What is decoded.

    Attributes:
        batch: B.
        rows: tokens in the cache of each sequence.
        dtype: of weights and cache.
    """

    batch: int = 1
    rows: int = 1024
    dtype: str = "bfloat16"


class PassPart(NamedTuple):
    """A part of a pass: how many layers, and whether logits are made behind them."""

    layers: int
    head: bool = True


def pass_seconds(config: DecoderConfig, part: PassPart, tokens: int, on: Machine, work: Workload = Workload()) -> float:
    """Return the time of a pass of some layers over ``tokens`` of each sequence.

    Raises:
        ValueError: more layers than the model has.
    """
    if not 0 <= part.layers <= config.num_layers:
        raise ValueError(f"expected 0 to {config.num_layers} layers, got {part.layers}")
    layer, head = _sizes(config)
    width, count = jnp.dtype(work.dtype).itemsize, work.batch * tokens
    matrices = part.layers * layer * _chosen(config, count) + part.head * head
    rows = 2 * part.layers * config.num_kv_heads * config.head_size * work.rows * work.batch
    products = 2 * count * (part.layers * layer * _chosen(config, 1) + part.head * head)
    products += 4 * count * work.rows * part.layers * config.num_heads * config.head_size
    rate = on.number * on.efficiency
    spent = max(width * (matrices + rows) / (rate * on.chip.bandwidth), products / (rate * on.chip.flops))
    return on.launch + spent + (2 * part.layers * on.latency if on.number > 1 else 0.0)


_weight_bytes = cache(parameter_bytes)


def _check_memory(name: str, config: DecoderConfig, on: Machine, work: Workload) -> None:
    needed, free = _weight_bytes(config, work.dtype), on.number * on.chip.memory
    if needed > free:
        raise ValueError(
            f"expected a {name} that fits into {on.number} chips of {on.chip.memory / 1e9:g} GB, got "
            f"{needed / 1e9:.1f} GB of weights; use more chips"
        )


@cache
def _sizes(config: DecoderConfig) -> tuple[float, int]:
    """Return the entries of a layer's matrices, on average, and of the head."""
    params = like_params(config, "bfloat16")
    entries = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))  # noqa: E731
    return entries(params["layers"]) / config.num_layers, entries(params.get("head", params["embedding"]))


@cache
def _chosen(config: DecoderConfig, tokens: int) -> float:
    """Return the share of a layer's matrices that so many tokens read, if each chooses its experts by chance."""
    experts = config.experts
    if experts is None:
        return 1.0
    layers = like_params(config, "bfloat16")["layers"]
    leaves = jax.tree_util.tree_leaves_with_path(layers)
    divided = sum(math.prod(leaf.shape) for path, leaf in leaves if "expert_" in jax.tree_util.keystr(path))
    share = divided / sum(math.prod(leaf.shape) for _, leaf in leaves)
    read = 1 - (1 - experts.top_k / experts.count) ** tokens
    return 1 - share * (1 - read)


class PredictedPair(NamedTuple):
    """A target, a draft, and where they are.

    Attributes:
        target: of the model whose text comes out.
        draft: of the draft.
        target_on: its chips.
        draft_on: other chips.
    """

    target: DecoderConfig
    draft: DecoderConfig
    target_on: Machine
    draft_on: Machine

    @property
    def together(self) -> Machine | None:
        """All chips for both models, if they are of one kind."""
        same = self.target_on.chip == self.draft_on.chip
        return self.target_on._replace(number=self.target_on.number + self.draft_on.number) if same else None


class PredictedTimes(NamedTuple):
    """Seconds of the programs of a step with a window of ``REFERENCE`` tokens.

    Attributes:
        plain: a step of plain decoding on the target's chips.
        whole: the target's pass over a window.
        prefix: its layers up to the exit, and the exit's logits.
        suffix: the others.
        draft: a window of one branch.
        rollout: a window of all branches.
        message: from one mesh to the other.
    """

    plain: float
    whole: float
    prefix: float
    suffix: float
    draft: float
    rollout: float
    message: float


def predicted_times(
    pair: PredictedPair, branches: int = 8, exit_share: float = 0.5, message: float = 50e-6, work: Workload = Workload()
) -> PredictedTimes:
    """Return the times of a step's programs.

    Args:
        pair: the models and their chips.
        branches: R.
        exit_share: ℓₑ/N.
        message: seconds between the meshes; an assumption.
        work: batch, length, dtype.

    Raises:
        ValueError: a model whose weights do not fit into the memory of its chips.
    """
    for name, config, on in (("target", pair.target, pair.target_on), ("draft", pair.draft, pair.draft_on)):
        _check_memory(name, config, on, work)
    count = pair.target.num_layers
    first = max(1, round(exit_share * count))

    def of_target(part: PassPart, tokens: int) -> float:
        return pass_seconds(pair.target, part, tokens, pair.target_on, work)

    def of_draft(branches: int) -> float:
        # One program: it is launched once, not for every token.
        one = pass_seconds(
            pair.draft, PassPart(pair.draft.num_layers), branches, pair.draft_on._replace(launch=0.0), work
        )
        return pair.draft_on.launch + REFERENCE * one

    window = REFERENCE + 1
    return PredictedTimes(
        plain=of_target(PassPart(count), 1),
        whole=of_target(PassPart(count), window),
        prefix=of_target(PassPart(first), window),
        suffix=of_target(PassPart(count - first), window),
        draft=of_draft(1),
        rollout=of_draft(branches),
        message=message,
    )


class Gains(NamedTuple):
    """How many times as fast as plain decoding, of every policy at its best window.

    Attributes:
        same_placement: over plain decoding on the target's chips, by policy; ``speculative`` drafts on the other chips.
        equal_chips: over plain decoding on all chips; None where the chips differ.
        all_devices: speculative decoding with both models on all chips, over plain decoding there; likewise.
    """

    same_placement: dict[str, float]
    equal_chips: dict[str, float] | None
    all_devices: float | None


def predicted_gains(pair: PredictedPair, rate: float, foreseen: float, **options: Any) -> Gains:
    """Return the speed-ups by the cost model of ``whatif``.

    Args:
        pair: the models and their chips.
        rate: α, the probability that a drafted token is accepted.
        foreseen: Ω′, that the exit's candidates hold the outcome.
        options: of ``predicted_times``.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    if not (0 <= rate <= 1 and 0 <= foreseen <= 1):
        raise ValueError(f"expected probabilities in [0, 1], got {rate} and {foreseen}")
    times, branches = predicted_times(pair, **options), options.get("branches", 8)
    gains = gains_at(times, branches, rate, foreseen)
    if pair.together is None:
        return Gains(gains, None, None)
    both = predicted_times(pair._replace(target_on=pair.together, draft_on=pair.together), **options)
    alone = gains_at(both._replace(message=0.0), branches, rate, foreseen)["speculative"]
    return Gains(gains, {name: gain * both.plain / times.plain for name, gain in gains.items()}, alone)


def gains_at(times: PredictedTimes, branches: int, rate: float, foreseen: float) -> dict[str, float]:
    """Return each policy's speed-up over plain decoding on the same chips, from times of any source.

    Args:
        times: predicted, or a compiler's.
        branches: R.
        rate: α.
        foreseen: Ω′.
    """
    more = 0.0 if branches == 1 else (times.rollout / times.draft - 1) / (branches - 1)
    halves = times.prefix + times.suffix
    at = Point(times.draft / times.whole, rate, foreseen)
    sent = times.message / times.whole
    constants = Assumptions(times.prefix / halves, branches=branches, branch_cost=max(more, 0.0), rendezvous=sent)
    scale = times.plain / times.whole
    policies = POLICIES | {"speculative": _apart}
    return {name: float(speed_ups(policy, constants, at)[0]) * scale for name, policy in policies.items()}


def _apart(constants: Assumptions, at: Point, window: int) -> tuple[ProgramTimes, Any]:
    """Draft after every verdict, on other chips: a window and a verdict are sent."""
    times, missed = POLICIES["speculative"](constants, at, window)
    return replace(times, rendezvous=2 * constants.rendezvous), missed
