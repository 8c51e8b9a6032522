"""The target's side: its passes, sampling, the rule of acceptance, the verdict, and the early exit's message."""

from jaxspec.verify import acceptance
from jaxspec.verify._message import Message, Roots, join, likely, message_like
from jaxspec.verify.exits import AffineLens, LogitLens, init_affine_lens
from jaxspec.verify.target import StepInfo

__all__ = [
    "AffineLens",
    "LogitLens",
    "Message",
    "Roots",
    "StepInfo",
    "acceptance",
    "init_affine_lens",
    "join",
    "likely",
    "message_like",
]
