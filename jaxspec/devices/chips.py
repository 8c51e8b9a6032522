"""TPUs that are not here: devices to compile for, by the package libtpu, and what their makers say of them."""

import importlib.util
import os
from typing import Any, NamedTuple

import jax
import numpy as np

#: What libtpu reads; without these it asks a metadata server, or refuses a second process.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Chip(NamedTuple):
    """An accelerator, as its maker describes it.

    Attributes:
        memory: bytes that a program may use.
        bandwidth: of main memory, bytes a second.
        flops: bfloat16 operations a second, dense.
        clock: of the matrix unit, cycles a second; 0: not published.
        link: to other chips, bytes a second, all links and directions together.
    """

    memory: float
    bandwidth: float
    flops: float
    clock: float = 0.0
    link: float = 0.0


#: By name, of a TPU what its topologies begin with. Sources: Google Cloud's pages on TPU versions, NVIDIA's datasheets.
#: v5e's clock is its operations a second over those a cycle of four matrix units, 4·2·128²; its memory is what its
#: compiler allows.
CHIPS = {
    "v4": Chip(32e9, 1228e9, 275e12, link=300e9),
    "v5e": Chip(16.9e9, 819e9, 197e12, 1.5e9, link=200e9),
    "v5p": Chip(95e9, 2765e9, 459e12, link=600e9),
    "v6e": Chip(32e9, 1640e9, 918e12, link=448e9),
    "H100": Chip(80e9, 3350e9, 989e12, link=900e9),
    "H200": Chip(141e9, 4800e9, 989e12, link=900e9),
    "L4": Chip(24e9, 300e9, 121e12, link=64e9),
    "L40S": Chip(48e9, 864e9, 362e12, link=64e9),
}
#: Those that libtpu compiles for.
TPUS = ("v4", "v5e", "v5p", "v6e")
#: What jax calls them (``device_kind``).
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}


def chip_named(name: str) -> Chip:
    """Return a chip of the table.

    Raises:
        ValueError: not in ``CHIPS``.
    """
    if name not in CHIPS:
        raise ValueError(f"expected a chip out of {', '.join(CHIPS)}, got {name!r}")
    return CHIPS[name]


def chip_of(name: str) -> Chip:
    """Return the chip of a TPU topology.

    Raises:
        ValueError: not one of ``TPUS``.
    """
    kind = name.partition(":")[0]
    if kind not in TPUS:
        raise ValueError(f"expected a topology of {', '.join(TPUS)}, such as v5e:2x4, got {name!r}")
    return CHIPS[kind]


def chip_in(device: jax.Device) -> Chip | None:
    """Return what a device is; None: not in the table, as a CPU is not."""
    kind = device.device_kind
    names = kind.removeprefix("NVIDIA ").split()
    return CHIPS.get(KINDS.get(kind, names[0] if names else ""))


def topology(name: str, slices: int = 1) -> np.ndarray[Any, Any]:
    """Return the devices of a TPU topology, to compile for: of at most eight chips as one host's.

    Args:
        name: kind and shape, as v5e:2x4.
        slices: so many of them, connected by the data centre's network; one after the other.

    Raises:
        ValueError: an unknown kind, or a shape that the kind does not have.
        ModuleNotFoundError: libtpu is not installed.
    """
    from jax.experimental import topologies

    chip_of(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            'expected the package libtpu, which compiles for TPUs on any machine, got none; pip install "jax[tpu]"'
        )
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")
    sizes = [int(size) for size in name.partition(":")[2].split("x") if size.isdigit()]
    sizes += [1] * (3 - len(sizes))
    options: dict[str, Any] = {"chips_per_host_bounds": sizes} if 0 < np.prod(sizes) <= 8 else {}
    options |= {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # the type is the runtime's own and differs between its versions
        raise ValueError(f"expected a topology that libtpu knows, such as v5e:2x4, got {name!r} ({error})") from error
    return np.array(found.devices)
