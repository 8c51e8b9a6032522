"""Federated learning as pure functions in JAX.

`jaxfed.algorithms` has one module per algorithm, composed of `jaxfed.algorithms.parts`; `jaxfed.simulate` runs them.
"""

from jaxfed import algorithms, checkpoint, core, data, layout, messages, models, rows, run
from jaxfed.algorithms import (
    fedadam,
    fedavg,
    fedcm,
    feddyn,
    fedgamma,
    fedprox,
    fedsam,
    fedsmoo,
    fedspeed,
    mofedsam,
    scaffold,
)
from jaxfed.core import CoinFlips, FixedSize, Stateful, lora, masked_mean, mixed_precision, trainable
from jaxfed.core.protocol import ClientMessage, ClientRow, Cohort, FederatedAlgorithm, RoundInfo, Server
from jaxfed.data import Epochs, Steps
from jaxfed.layout import chunked, map, plans, sharded, vmap  # noqa: A004  plans by their names
from jaxfed.messages import compression, privacy, robust, uplink
from jaxfed.rows import DeviceStore, DiskStore, HostStore
from jaxfed.run import (
    Checkpointing,
    History,
    Interrupted,
    Layout,
    NothingTrainedWarning,
    Report,
    RunState,
    metrics,
    simulate,
)

__all__ = [
    "Checkpointing",
    "ClientRow",
    "Cohort",
    "CoinFlips",
    "DeviceStore",
    "DiskStore",
    "Epochs",
    "FederatedAlgorithm",
    "FixedSize",
    "History",
    "HostStore",
    "Interrupted",
    "Layout",
    "ClientMessage",
    "NothingTrainedWarning",
    "Report",
    "RoundInfo",
    "RunState",
    "Server",
    "Stateful",
    "Steps",
    "algorithms",
    "checkpoint",
    "chunked",
    "compression",
    "core",
    "data",
    "fedadam",
    "fedavg",
    "fedcm",
    "feddyn",
    "fedgamma",
    "fedprox",
    "fedsam",
    "fedsmoo",
    "fedspeed",
    "layout",
    "lora",
    "map",
    "masked_mean",
    "messages",
    "metrics",
    "mixed_precision",
    "models",
    "mofedsam",
    "plans",
    "privacy",
    "robust",
    "rows",
    "run",
    "scaffold",
    "sharded",
    "simulate",
    "trainable",
    "uplink",
    "vmap",
]


def __dir__() -> list[str]:
    return __all__
