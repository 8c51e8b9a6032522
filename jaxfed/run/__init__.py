"""The loop on one machine: rounds, evaluation, progress, checkpoints, history."""

from jaxfed.run import metrics, personal
from jaxfed.run._simulate import config_of, simulate
from jaxfed.run.buffered import Buffer, simulate_buffered
from jaxfed.run.evaluation import Evaluate, RowsOf
from jaxfed.run.history import History, RunState
from jaxfed.run.resume import Checkpointing, Interrupted
from jaxfed.run.settings import Callback, Layout, Report
from jaxfed.run.state import NothingTrainedWarning, diverged
from jaxfed.run.sweeps import Sweep, sweep

__all__ = [
    "Buffer",
    "Callback",
    "Checkpointing",
    "Evaluate",
    "History",
    "Interrupted",
    "Layout",
    "NothingTrainedWarning",
    "Report",
    "RowsOf",
    "Sweep",
    "RunState",
    "config_of",
    "diverged",
    "metrics",
    "personal",
    "simulate",
    "simulate_buffered",
    "sweep",
]
