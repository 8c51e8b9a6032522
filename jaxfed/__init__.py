"""Federated learning as pure functions in JAX."""

from jaxfed import algorithms, checkpoint, data, models
from jaxfed.algorithm import ClientRow, Cohort, FederatedAlgorithm, RoundInfo, Server
from jaxfed.algorithms import fedavg, fedprox, fedspeed
from jaxfed.cohort import CoinFlips, DeviceStore, FixedSize, vmap
from jaxfed.history import History
from jaxfed.resume import Checkpointing
from jaxfed.simulate import simulate
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
    "RoundInfo",
    "Server",
    "algorithms",
    "checkpoint",
    "data",
    "fedavg",
    "fedprox",
    "fedspeed",
    "masked_mean",
    "models",
    "simulate",
    "vmap",
]
