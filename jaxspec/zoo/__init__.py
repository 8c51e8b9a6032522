"""Model pairs embedded in the package (target, draft, exit, tokenizer), and larger models grown from them."""

from jaxspec.zoo._grow import grow, grown_config
from jaxspec.zoo.pairs import PAIRS, Pair, draft_folders, load, save

__all__ = ["PAIRS", "Pair", "draft_folders", "grow", "grown_config", "load", "save"]
