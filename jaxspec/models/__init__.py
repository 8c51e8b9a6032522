"""Language models as pure functions: the network protocol, its configuration, and one decoder for all families."""

from jaxspec.models._decoder import decoder, init_params, network
from jaxspec.models._partition import partition
from jaxspec.models.base import Array, Attend, Cache, Model, Network, Params, Rows
from jaxspec.models.config import Attention, Block, ClampedGate, DecoderConfig, Ends, Experts, Scores, Tracks
from jaxspec.models.long_texts import for_long_texts
from jaxspec.models.quantize import quantized
from jaxspec.models.rotary import LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, YarnScaling
from jaxspec.models.vocabulary import fit_vocabulary

__all__ = [
    "Array",
    "Attend",
    "Attention",
    "Block",
    "Cache",
    "ClampedGate",
    "DecoderConfig",
    "Ends",
    "Experts",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "Model",
    "Network",
    "Params",
    "Rotary",
    "Rows",
    "Scores",
    "Tracks",
    "YarnScaling",
    "decoder",
    "fit_vocabulary",
    "for_long_texts",
    "init_params",
    "network",
    "partition",
    "quantized",
]
