"""The target's compiled programs: prefix with its message and suffix, both as one, and a step of plain decoding."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.devices.channel import pack
from jaxspec.models.base import Array, Cache, Params
from jaxspec.verify.features import Features
from jaxspec.verify.info import StepInfo, step_record
from jaxspec.verify.message import exit_message
from jaxspec.verify.sampling import perturbed
from jaxspec.verify.target import (
    Progress,
    Target,
    TargetState,
    advance,
    choose,
    positions_of,
    prefix_pass,
    suffix_pass,
)


class Half(NamedTuple):
    """What the prefix leaves to the suffix: x [D, B, γ+1], and the features up to the exit."""

    x: Array
    features: Features | None = None


@partial(jax.jit, static_argnames=("target", "exit_layer", "num_candidates"), donate_argnames="cache")
def target_prefix(
    target: Target,
    exit_layer: int,
    num_candidates: int,
    params: Params,
    head: Any,
    fusion: Params,
    cache: Cache,
    progress: Progress,
    window: Array,
) -> tuple[Half, Cache, Array, Any]:
    """Run the prefix: x, rows of layers 1..ℓₑ, the packed message of the exit ``head``, and what is sent along."""
    x, cache, features = prefix_pass(target, params, cache, progress, window, exit_layer)
    seen, at = progress.seen.along(window), positions_of(progress, window)
    scores = perturbed(head(target.network, params, x), progress.sampling, at, seen)
    message = pack(exit_message(scores, window, num_candidates))
    return Half(x, features), cache, message, target.reader.sent(fusion, features)


@partial(jax.jit, static_argnames=("target", "exit_layer"), donate_argnames="cache")
def target_suffix(
    target: Target,
    exit_layer: int,
    params: Params,
    fusion: Params,
    cache: Cache,
    progress: Progress,
    half: Half,
    window: Array,
    probabilities: Any,
    message: Array | None = None,
) -> tuple[Cache, Progress, Array, Array, Any]:
    """Run the suffix: rows of layers ℓₑ+1..N, progress, packed verdict, packed record, and what is sent of features."""
    x, cache, features = suffix_pass(target, params, cache, progress, half.x, exit_layer)
    choices = choose(target, params, progress, x, window, probabilities)
    progress, verdict, emitted = advance(progress, window, choices.tokens)
    record = step_record(choices, window, verdict, emitted, message)
    return cache, progress, pack(verdict), record, target.reader.sent(fusion, half.features, features)


@partial(jax.jit, static_argnames="target", donate_argnames="cache")
def target_whole(
    target: Target, params: Params, fusion: Params, cache: Cache, progress: Progress, window: Array, probabilities: Any
) -> tuple[Cache, Progress, Array, Array, Any]:
    """Run prefix and suffix as one program, without a message; returns what ``target_suffix`` does, for all layers."""
    x, cache, features = prefix_pass(target, params, cache, progress, window, target.num_layers)
    choices = choose(target, params, progress, x, window, probabilities)
    progress, verdict, emitted = advance(progress, window, choices.tokens)
    sent = target.reader.sent(fusion, features)
    return cache, progress, pack(verdict), step_record(choices, window, verdict, emitted), sent


@partial(jax.jit, static_argnames="target", donate_argnames="state")
def target_plain(target: Target, params: Params, state: TargetState) -> tuple[TargetState, StepInfo]:
    """Run a step of plain decoding: one token."""
    progress = state.progress
    nothing = jnp.zeros((progress.last.shape[0], 0), jnp.int32)
    x, cache, _ = prefix_pass(target, params, state.cache, progress, nothing, target.num_layers)
    choices = choose(target, params, progress, x, nothing)
    progress, verdict, emitted = advance(progress, nothing, choices.tokens)
    return TargetState(cache, progress), StepInfo(step_record(choices, nothing, verdict, emitted))
