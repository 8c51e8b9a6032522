"""The target's side: its passes, sampling, the rule of acceptance, the verdict, and the early exit's message."""

from jaxspec.verify import acceptance
from jaxspec.verify.exits import AffineLens, FrequentLens, LogitLens, init_affine_lens, init_frequent_lens
from jaxspec.verify.features import Features, Reads
from jaxspec.verify.info import StepInfo
from jaxspec.verify.message import Message, Roots, join, likely, message_like, open_ended
from jaxspec.verify.seen import Seen

__all__ = [
    "AffineLens",
    "Features",
    "FrequentLens",
    "LogitLens",
    "Message",
    "Reads",
    "Roots",
    "Seen",
    "StepInfo",
    "acceptance",
    "init_affine_lens",
    "init_frequent_lens",
    "join",
    "likely",
    "message_like",
    "open_ended",
]
