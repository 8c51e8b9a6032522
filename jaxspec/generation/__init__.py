"""The loop: prompts in; tokens, text and statistics out, whatever the decoding method."""

from jaxspec.generation._generate import Generation, NonFiniteLogits, Stats, generate, stream
from jaxspec.generation.trace import Passes, Span, Timeline, median_milliseconds, perfetto

__all__ = [
    "Generation",
    "NonFiniteLogits",
    "Passes",
    "Span",
    "Stats",
    "Timeline",
    "generate",
    "median_milliseconds",
    "perfetto",
    "stream",
]
