"""Mirror speculative decoding in JAX: lossless, with drafts that work while the target verifies."""

from jaxspec import acceptance, candidates, fallbacks, latency, stream_training, trace, zoo
from jaxspec.autoregressive import autoregressive
from jaxspec.config import DecoderConfig, Tracks
from jaxspec.decoding import DecodingMethod, StepInfo
from jaxspec.exits import AffineLens, LogitLens
from jaxspec.generate import Generation, NonFiniteLogits, Stats, generate, stream
from jaxspec.mirror import mirror
from jaxspec.models.decoder import decoder
from jaxspec.models.huggingface import load_huggingface, save_huggingface
from jaxspec.models.llama2c import load_llama2c
from jaxspec.models.quantize import quantized
from jaxspec.models.streams import streaming
from jaxspec.probe import probe
from jaxspec.sharding import Placement, default_placement, mesh_of
from jaxspec.speculative import speculative
from jaxspec.text import Text
from jaxspec.tune import tune
from jaxspec.types import Model, Network
from jaxspec.vocabulary import fit_vocabulary

__all__ = [
    "AffineLens",
    "DecoderConfig",
    "DecodingMethod",
    "Generation",
    "LogitLens",
    "Model",
    "Network",
    "NonFiniteLogits",
    "Placement",
    "Stats",
    "StepInfo",
    "Text",
    "Tracks",
    "acceptance",
    "autoregressive",
    "candidates",
    "decoder",
    "default_placement",
    "fallbacks",
    "fit_vocabulary",
    "generate",
    "latency",
    "load_huggingface",
    "load_llama2c",
    "mesh_of",
    "mirror",
    "probe",
    "quantized",
    "save_huggingface",
    "speculative",
    "stream",
    "stream_training",
    "streaming",
    "trace",
    "tune",
    "zoo",
]
