"""Plain decoding: one token a step. The reference whose tokens every other method must give."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.channel import send
from jaxspec.decoding import (
    DecodingMethod,
    StepInfo,
    TargetState,
    Watch,
    advance,
    prefill,
    prefix_pass,
    suffix_pass,
    unwatched,
)
from jaxspec.sharding import place
from jaxspec.types import Array, Model, Network, Params


def autoregressive(target: Model, mesh: Mesh | None = None) -> DecodingMethod:
    """One token a step: y = argmax p^(N)(· | prefix).

    Args:
        target: network and parameters.
        mesh: where it runs; tensor-parallel over more than one device. Default: the first device.
    """
    network, (params, home) = target.network, place(target, mesh)

    def init(tokens: Array, lengths: Array, max_new_tokens: int, capacity: int) -> TargetState:
        tokens, lengths = send((tokens, lengths), home)
        return prefill(network, params, tokens, lengths, jnp.int32(max_new_tokens), capacity)

    def step(state: TargetState, watch: Watch = unwatched) -> tuple[TargetState, StepInfo]:
        state, info = _step(network, params, state)
        watch("target", "step", info)
        return state, info

    return DecodingMethod(init, step, 0, network.config.vocab_size)


@partial(jax.jit, static_argnames="network", donate_argnames="state")
def _step(network: Network, params: Params, state: TargetState) -> tuple[TargetState, Any]:
    count = network.config.num_layers
    nothing = jnp.zeros((state.progress.last.shape[0], 0), jnp.int32)
    x, cache = prefix_pass(network, params, state.cache, state.progress, nothing, count)
    choices, _ = suffix_pass(network, params, (), state.progress, x, count)
    progress, verdict, emitted = advance(state.progress, nothing, choices)
    info = StepInfo(choices, emitted, verdict.num_accepted, jnp.zeros(emitted.shape, bool))
    return TargetState(cache, progress), info
