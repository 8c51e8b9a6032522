"""Which method pays: the cost model of a step, timing of its programs, replays without decoding, pictures."""

from jaxspec.analysis import cost, foresight, plots, specbench, timing, whatif
from jaxspec.analysis._probe import Knowledge, Proposal, probe, proposals, step_ends
from jaxspec.analysis._tune import Grid, Setting, Tuned, tune

__all__ = [
    "Grid",
    "Knowledge",
    "Proposal",
    "Setting",
    "Tuned",
    "cost",
    "foresight",
    "plots",
    "probe",
    "proposals",
    "specbench",
    "step_ends",
    "timing",
    "tune",
    "whatif",
]
