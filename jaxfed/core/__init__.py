"""Core types: the protocol of an algorithm, trees, random keys, checks, samplers."""

from jaxfed.core import keys, lora, trainable, tree
from jaxfed.core.checks import check_choice, check_range
from jaxfed.core.precision import mixed_precision
from jaxfed.core.protocol import (
    Aggregate,
    ClientInfo,
    ClientMessage,
    ClientRow,
    ClientUpdate,
    Cohort,
    CohortResult,
    FederatedAlgorithm,
    Noise,
    Parts,
    Plan,
    RoundInfo,
    Server,
    ServerUpdate,
)
from jaxfed.core.samplers import CoinFlips, FixedSize, Sampler
from jaxfed.core.stateful import AnyLossFn, Stateful
from jaxfed.core.tree import masked_mean
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar

__all__ = [
    "Aggregate",
    "AnyLossFn",
    "Batch",
    "ClientInfo",
    "ClientRow",
    "ClientUpdate",
    "Cohort",
    "CohortResult",
    "CoinFlips",
    "FederatedAlgorithm",
    "FixedSize",
    "Key",
    "LossFn",
    "ClientMessage",
    "Noise",
    "Params",
    "Parts",
    "Plan",
    "RoundInfo",
    "Sampler",
    "Scalar",
    "Server",
    "ServerUpdate",
    "Stateful",
    "check_choice",
    "check_range",
    "keys",
    "lora",
    "masked_mean",
    "mixed_precision",
    "trainable",
    "tree",
]
