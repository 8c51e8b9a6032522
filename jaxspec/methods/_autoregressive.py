"""Plain decoding: one token a step. The reference whose tokens every other method must give."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import put_model
from jaxspec.methods.checks import check_dtype, check_processes
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model, Network, Params
from jaxspec.verify.target import Request, StepInfo, TargetState, advance, prefill, prefix_pass, suffix_pass


def autoregressive(target: Model, mesh: Mesh | None = None) -> DecodingMethod:
    """One token a step: y drawn from p^(N)(· | prefix).

    Args:
        target: network and parameters.
        mesh: where it runs, tensor-parallel over ``model``, sequences over ``data``. Default: the first device.

    Raises:
        ValueError: a target of a type too narrow to compute in; the mesh does not divide heads or hidden features, or
            is another process's.
    """
    check_processes(mesh)
    check_dtype(target, "target")
    network, params, home, _ = put_model(target, mesh)

    def init(request: Request, capacity: int) -> TargetState:
        return prefill(network, params, send(request, home), capacity)

    def step(state: TargetState, watch: Watch = unwatched) -> tuple[TargetState, StepInfo]:
        state, info = _step(network, params, state)
        watch("target", "step", info)
        return state, info

    return method_of(target, init, step, 0, mesh)


@partial(jax.jit, static_argnames="network", donate_argnames="state")
def _step(network: Network, params: Params, state: TargetState) -> tuple[TargetState, StepInfo]:
    count, progress = network.config.num_layers, state.progress
    nothing = jnp.zeros((progress.last.shape[0], 0), jnp.int32)
    x, cache = prefix_pass(network, params, state.cache, progress, nothing, count)
    choices, _ = suffix_pass(network, params, (), progress, x, count, nothing)
    progress, verdict, emitted = advance(progress, nothing, choices.tokens)
    return TargetState(cache, progress), StepInfo(choices.packed(nothing, verdict, emitted))
