"""Decoding methods: plain, speculative and Mirror-SD, and the policies of what is rolled out ahead."""

from jaxspec.methods import candidates, fallbacks
from jaxspec.methods._autoregressive import autoregressive
from jaxspec.methods._mirror import mirror
from jaxspec.methods._speculative import lookup, speculative
from jaxspec.methods.protocol import DecodingMethod, Watch
from jaxspec.methods.spec import DecodeSpec

__all__ = [
    "DecodeSpec",
    "DecodingMethod",
    "Watch",
    "autoregressive",
    "candidates",
    "fallbacks",
    "lookup",
    "mirror",
    "speculative",
]
