"""What everything is made of: types, trees, checks, the protocol of an algorithm, samplers."""

from jaxfed.core import trainable, tree
from jaxfed.core.precision import mixed_precision
from jaxfed.core.protocol import (
    Aggregate,
    ClientInfo,
    ClientRow,
    ClientUpdate,
    Cohort,
    CohortResult,
    FederatedAlgorithm,
    Insides,
    Message,
    Noise,
    Plan,
    RoundInfo,
    Server,
    ServerUpdate,
)
from jaxfed.core.samplers import CoinFlips, FixedSize, Sampler
from jaxfed.core.stateful import Stateful
from jaxfed.core.tree import masked_mean
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar

__all__ = [
    "Aggregate",
    "Batch",
    "ClientInfo",
    "ClientRow",
    "ClientUpdate",
    "Cohort",
    "CohortResult",
    "CoinFlips",
    "FederatedAlgorithm",
    "FixedSize",
    "Insides",
    "Key",
    "LossFn",
    "Message",
    "Noise",
    "Params",
    "Plan",
    "RoundInfo",
    "Sampler",
    "Scalar",
    "Server",
    "ServerUpdate",
    "Stateful",
    "masked_mean",
    "mixed_precision",
    "trainable",
    "tree",
]
