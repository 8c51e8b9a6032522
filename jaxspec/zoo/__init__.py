"""Embedded pairs: target, draft, exit and tokenizer inside the package; and larger models grown from them."""

from jaxspec.zoo._grow import grow, grown_config
from jaxspec.zoo.pairs import PAIRS, STREAMS, Pair, load, save, save_streams

__all__ = ["PAIRS", "STREAMS", "Pair", "grow", "grown_config", "load", "save", "save_streams"]
