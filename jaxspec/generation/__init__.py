"""Decoding: prompts in; tokens, text and statistics out, with any decoding method."""

from jaxspec.generation._continue import continued
from jaxspec.generation._generate import generate, stream
from jaxspec.generation._loop import IN_FLIGHT
from jaxspec.generation._questions import own_questions
from jaxspec.generation._results import Generation, NonFiniteLogits, Stats
from jaxspec.generation.sampling import Sampling
from jaxspec.generation.trace import Passes, Span, Timeline, median_milliseconds, perfetto

__all__ = [
    "Generation",
    "IN_FLIGHT",
    "NonFiniteLogits",
    "Passes",
    "Sampling",
    "Span",
    "Stats",
    "Timeline",
    "continued",
    "generate",
    "median_milliseconds",
    "own_questions",
    "perfetto",
    "stream",
]
