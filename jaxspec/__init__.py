"""Mirror speculative decoding in JAX: lossless, with drafts that work while the target verifies."""

from jaxspec import candidates, trace, zoo
from jaxspec.autoregressive import autoregressive
from jaxspec.config import DecoderConfig
from jaxspec.decoding import DecodingMethod, StepInfo
from jaxspec.exits import AffineLens, LogitLens
from jaxspec.generate import Generation, Stats, generate
from jaxspec.mirror import mirror
from jaxspec.models.decoder import decoder
from jaxspec.sharding import Placement, mesh_of
from jaxspec.speculative import speculative
from jaxspec.types import Model, Network

__all__ = [
    "AffineLens",
    "DecoderConfig",
    "DecodingMethod",
    "Generation",
    "LogitLens",
    "Model",
    "Network",
    "Placement",
    "Stats",
    "StepInfo",
    "autoregressive",
    "candidates",
    "decoder",
    "generate",
    "mesh_of",
    "mirror",
    "speculative",
    "trace",
    "zoo",
]
