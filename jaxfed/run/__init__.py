"""The loop on one machine: rounds, evaluation, progress, checkpoints, history."""

from jaxfed.run import metrics
from jaxfed.run._simulate import config_of, diverged, simulate
from jaxfed.run.history import History, RunState
from jaxfed.run.resume import Checkpointing, Interrupted
from jaxfed.run.settings import Callback, Evaluate, Layout, Report
from jaxfed.run.state import NothingTrainedWarning

__all__ = [
    "Callback",
    "Checkpointing",
    "Evaluate",
    "History",
    "Interrupted",
    "Layout",
    "NothingTrainedWarning",
    "Report",
    "RunState",
    "config_of",
    "diverged",
    "metrics",
    "simulate",
]
