"""Shapes of published models, two layers of each, and sizes that tests compare with."""

from jaxspec.models.config import Attention, DecoderConfig, Ends, Rotary

LAYERS, SMALL, LARGE = 2, 64 << 10, 1 << 20
LLAMA = DecoderConfig(
    128256, 4096, LAYERS, 32, 8, 128, 14336, Attention(Rotary(5e5)), ends=Ends(tied=False, embedding_scale=1.0)
)
QWEN = DecoderConfig(
    128256, 1024, LAYERS, 16, 8, 128, 3072, Attention(Rotary(1e6), norm_heads=True),
    ends=Ends(tied=True, embedding_scale=1.0),
)  # fmt: skip


def cache_bytes(config, mesh, sizes):
    """Bytes of all rows on one chip, in bfloat16."""
    heads = config.num_kv_heads // mesh.size
    return config.num_layers * 2 * sizes.batch * heads * sizes.capacity * config.head_size * 2
