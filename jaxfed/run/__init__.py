"""The loop on one machine: rounds, evaluation, progress, checkpoints, history."""

from jaxfed.run import metrics
from jaxfed.run._simulate import (
    Callback,
    Evaluate,
    Weights,
    batching_of,
    config_of,
    diverged,
    sampler_of,
    simulate,
    weights_of,
)
from jaxfed.run.resume import Checkpointing, Interrupted
from jaxfed.run.state import NothingTrainedWarning

__all__ = [
    "Callback",
    "Checkpointing",
    "Evaluate",
    "Interrupted",
    "NothingTrainedWarning",
    "Weights",
    "batching_of",
    "config_of",
    "diverged",
    "metrics",
    "sampler_of",
    "simulate",
    "weights_of",
]
