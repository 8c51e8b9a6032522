"""Which method is the fastest: the cost model of a step, timing of its programs, replays of steps, plots."""

from jaxspec.analysis import clocks, cost, crossing, plots, replay, specbench, timing, whatif
from jaxspec.analysis._grid import Grid
from jaxspec.analysis._lookup import LookupSteps, lookup_steps
from jaxspec.analysis._point import MeasuredPoint, measured_point
from jaxspec.analysis._predict import Prediction, Tuned
from jaxspec.analysis._probe import ExitProbe, ExitProposal, probe, proposals
from jaxspec.analysis._reading import step_ends
from jaxspec.analysis._tune import tune
from jaxspec.analysis.dividing import placement_for

__all__ = [
    "ExitProbe",
    "ExitProposal",
    "Grid",
    "LookupSteps",
    "MeasuredPoint",
    "Prediction",
    "Tuned",
    "clocks",
    "cost",
    "crossing",
    "lookup_steps",
    "measured_point",
    "placement_for",
    "plots",
    "probe",
    "proposals",
    "replay",
    "specbench",
    "step_ends",
    "timing",
    "tune",
    "whatif",
]
