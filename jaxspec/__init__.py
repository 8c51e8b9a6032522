"""Mirror speculative decoding in JAX: lossless, with drafts that work while the target verifies.

Methods are made by `jaxspec.autoregressive`, `speculative` and `mirror`; `jaxspec.generate` is the loop.
"""

from jaxspec import analysis, devices, drafts, generation, loading, methods, models, text, training, verify, zoo
from jaxspec.analysis import placement_for, probe, tune
from jaxspec.devices import Placement, default_placement, mesh_of
from jaxspec.drafts import streaming
from jaxspec.generation import Generation, NonFiniteLogits, Sampling, Stats, generate, stream
from jaxspec.loading import (
    load_draft,
    load_exit,
    load_gguf,
    load_huggingface,
    load_llama2c,
    save_draft,
    save_huggingface,
)
from jaxspec.methods import DecodingMethod, autoregressive, candidates, fallbacks, lookup, mirror, speculative
from jaxspec.models import DecoderConfig, Model, Network, Tracks, decoder, fit_vocabulary, quantized
from jaxspec.text import Text
from jaxspec.verify import AffineLens, FrequentLens, LogitLens, StepInfo, acceptance

__all__ = [
    "AffineLens",
    "DecoderConfig",
    "DecodingMethod",
    "FrequentLens",
    "Generation",
    "LogitLens",
    "Model",
    "Network",
    "NonFiniteLogits",
    "Placement",
    "Sampling",
    "Stats",
    "StepInfo",
    "Text",
    "Tracks",
    "acceptance",
    "analysis",
    "autoregressive",
    "candidates",
    "decoder",
    "default_placement",
    "devices",
    "drafts",
    "fallbacks",
    "fit_vocabulary",
    "generate",
    "generation",
    "load_draft",
    "load_exit",
    "load_gguf",
    "load_huggingface",
    "load_llama2c",
    "loading",
    "lookup",
    "mesh_of",
    "methods",
    "mirror",
    "models",
    "placement_for",
    "probe",
    "quantized",
    "save_draft",
    "save_huggingface",
    "speculative",
    "stream",
    "streaming",
    "text",
    "training",
    "tune",
    "verify",
    "zoo",
]


def __dir__() -> list[str]:
    return __all__
