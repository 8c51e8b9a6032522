"""A configuration as text, which names files that are kept."""

from dataclasses import replace

from jaxspec.models import Attention, DecoderConfig, Rotary
from jaxspec.models.config import described

SIZES = DecoderConfig(11, 16, 4, 4, 2, 4, 16)


def test_fields_with_their_default_are_left_out():
    sizes = "vocab_size=11, width=16, num_layers=4, num_heads=4, num_kv_heads=2, head_size=4, hidden=16"
    assert described(SIZES) == f"DecoderConfig({sizes})"
    other = replace(SIZES, attention=Attention(Rotary(1e6), qkv_bias=True))
    nested = "attention=Attention(rotary=Rotary(theta=1000000.0), qkv_bias=True)"
    assert described(other) == f"DecoderConfig({sizes}, {nested})"
    assert described(None) == "None"
