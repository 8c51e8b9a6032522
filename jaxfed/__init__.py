"""Federated learning as pure functions in JAX."""

from jaxfed import (
    algorithms,
    checkpoint,
    compression,
    data,
    metrics,
    models,
    plans,
    privacy,
    robust,
    stores,
    trainable,
)
from jaxfed.algorithm import ClientRow, Cohort, FederatedAlgorithm, Message, RoundInfo, Server
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
from jaxfed.history import History, RunState
from jaxfed.plans import chunked, map, sharded, vmap  # noqa: A004  plans by their names
from jaxfed.precision import mixed_precision
from jaxfed.resume import Checkpointing, Interrupted
from jaxfed.samplers import CoinFlips, FixedSize
from jaxfed.simulate import simulate
from jaxfed.state import NothingTrainedWarning
from jaxfed.stateful import Stateful
from jaxfed.stores import DeviceStore, DiskStore, HostStore
from jaxfed.tree import masked_mean
from jaxfed.uplink import uplink

__all__ = [
    "Checkpointing",
    "ClientRow",
    "Cohort",
    "CoinFlips",
    "DeviceStore",
    "DiskStore",
    "FederatedAlgorithm",
    "FixedSize",
    "History",
    "HostStore",
    "Interrupted",
    "Message",
    "NothingTrainedWarning",
    "RoundInfo",
    "RunState",
    "Server",
    "Stateful",
    "algorithms",
    "checkpoint",
    "chunked",
    "compression",
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
    "map",
    "masked_mean",
    "metrics",
    "mixed_precision",
    "models",
    "mofedsam",
    "plans",
    "privacy",
    "robust",
    "scaffold",
    "sharded",
    "simulate",
    "stores",
    "trainable",
    "uplink",
    "vmap",
]
