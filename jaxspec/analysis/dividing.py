"""How many devices for the target, and how many for the draft: by the predicted time of a pass on each number."""

from collections.abc import Sequence

import jax

from jaxspec.analysis.roofline import Machine, PassPart, pass_seconds
from jaxspec.devices.chips import Chip, chip_in
from jaxspec.devices.sharding import Placement, is_shardable, mesh_of
from jaxspec.drafts.base import Draft
from jaxspec.loading.parameters import parameter_bytes
from jaxspec.models.base import Model
from jaxspec.models.config import DecoderConfig


def placement_for(
    target: Model, draft: Model | Draft | None = None, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """Return meshes for a pair: as many devices for each as make its pass fastest, by bytes, operations and messages.

    A model on n devices reads 1/n of its weights on each, and waits for two messages a layer: large models get many
    devices, small ones one. The target chooses first and leaves one for the draft.

    Args:
        target: the model whose text comes out.
        draft: a language model; one of another kind, or None, gets one device.
        devices: of one process. Default: all that this one has. A single device is both meshes; of devices that are not
            in ``devices.chips.CHIPS``, such as CPUs, target and draft get one each.

    Raises:
        ValueError: no device.
        MemoryError: the target's weights fit on no number of the devices that its heads can be divided among.
    """
    found = list(jax.local_devices() if devices is None else devices)
    if not found:
        raise ValueError("expected at least one device, got none")
    if len(found) == 1:
        return Placement(mesh_of(found), mesh_of(found))
    chip, first, second = chip_in(found[0]), 1, 1
    if chip is not None:
        first = fastest_number(target.network.config, found[:-1], chip)
        second = fastest_number(draft.network.config, found[first:], chip) if isinstance(draft, Model) else 1
    return Placement(mesh_of(found[:first]), mesh_of(found[first : first + second]))


def fastest_number(config: DecoderConfig, devices: Sequence[jax.Device], chip: Chip) -> int:
    """Return on how many of the devices, all of one kind, a pass over one token is predicted to be fastest.

    Raises:
        MemoryError: the weights, in 16 bits, fit on no number that the heads can be divided among.
    """
    possible = [count for count in range(1, len(devices) + 1) if is_shardable(config, mesh_of(devices[:count]))]
    weights = parameter_bytes(config, "bfloat16")
    fitting = [count for count in possible if weights <= count * chip.memory]
    if not fitting:
        raise MemoryError(
            f"expected weights that fit on {max(possible)} of the devices, {max(possible) * chip.memory / 1e9:.0f} GB, "
            f"got {weights / 1e9:.1f} GB in 16 bits; use more devices, or eight bits and a placement of your own"
        )
    whole = PassPart(config.num_layers)
    return min(fitting, key=lambda count: pass_seconds(config, whole, 1, Machine(chip, count)))
