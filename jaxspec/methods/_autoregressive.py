"""Plain decoding: one token a step. The reference whose tokens every other method must produce."""

from jax.sharding import Mesh

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import put_model
from jaxspec.methods.checks import check_processes
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model
from jaxspec.models.dtypes import check_dtype
from jaxspec.verify.info import StepInfo
from jaxspec.verify.programs import target_plain
from jaxspec.verify.target import Request, Target, TargetState, prefill


def autoregressive(target: Model, mesh: Mesh | None = None) -> DecodingMethod:
    """Decode one token a step: y drawn from p^(N)(· | prefix).

    Args:
        target: network and parameters.
        mesh: where it runs, tensor-parallel over ``model``, sequences over ``data``. Default: the first device.

    Raises:
        ValueError: a target of a type too narrow to compute in; the mesh does not divide heads or hidden features, or
            is in another process.
    """
    check_processes(mesh)
    check_dtype(target, "target")
    network, params, home, _ = put_model(target, mesh)
    fixed = Target(network)

    def init(request: Request, capacity: int) -> TargetState:
        return prefill(network, params, send(request, home), capacity, fixed.reader)[0]

    def step(state: TargetState, watch: Watch = unwatched) -> tuple[TargetState, StepInfo]:
        state, info = target_plain(fixed, params, state)
        watch("target", "step", info)
        return state, info

    return method_of(target, init, step, 0, mesh)
