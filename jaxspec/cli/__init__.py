"""The command line: one file a command."""

from jaxspec.cli._bench import bench
from jaxspec.cli._convert import convert
from jaxspec.cli._doctor import doctor
from jaxspec.cli._federate import federate
from jaxspec.cli._fetch import fetch
from jaxspec.cli._fits import fits
from jaxspec.cli._generate import generate
from jaxspec.cli._predict import predict
from jaxspec.cli._probe import probe
from jaxspec.cli._train import train
from jaxspec.cli._tune import tune
from jaxspec.cli._whatif import whatif

__all__ = [
    "bench",
    "convert",
    "doctor",
    "federate",
    "fetch",
    "fits",
    "generate",
    "predict",
    "probe",
    "train",
    "tune",
    "whatif",
]
