"""Federated learning as pure functions in JAX."""

from jaxfed import algorithms, checkpoint, data, models, plans, stores
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
from jaxfed.history import History
from jaxfed.plans import chunked, map, sharded, vmap  # noqa: A004  plans by their names
from jaxfed.resume import Checkpointing
from jaxfed.samplers import CoinFlips, FixedSize
from jaxfed.simulate import simulate
from jaxfed.stateful import Stateful
from jaxfed.stores import DeviceStore
from jaxfed.tree import masked_mean

__all__ = [
    "Checkpointing",
    "ClientRow",
    "Cohort",
    "CoinFlips",
    "DeviceStore",
    "FederatedAlgorithm",
    "FixedSize",
    "History",
    "Message",
    "RoundInfo",
    "Server",
    "Stateful",
    "algorithms",
    "checkpoint",
    "chunked",
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
    "models",
    "mofedsam",
    "plans",
    "scaffold",
    "sharded",
    "simulate",
    "stores",
    "vmap",
]
