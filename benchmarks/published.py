"""Configurations of published models."""

from jaxspec.loading.families import family_of
from jaxspec.models import DecoderConfig
from jaxspec.models.config import Attention, Ends, Rotary

LLAMA = DecoderConfig(
    128256, 4096, 32, 32, 8, 128, 14336, Attention(Rotary(5e5)), ends=Ends(tied=False, embedding_scale=1.0)
)
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8,
    "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 40960,
}  # fmt: skip
#: Width, layers, heads, hidden features, tied head.
SIZES = {
    "Qwen3-14B": (5120, 40, 40, 17408, False),
    "Qwen3-32B": (5120, 64, 64, 25600, False),
    "Qwen3-0.6B": (1024, 28, 16, 3072, True),
}


def config_of(name: str) -> DecoderConfig:
    """Return the configuration of a published model."""
    if name == "Llama-3-8B":
        return LLAMA
    width, layers, heads, hidden, tied = SIZES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    published = QWEN3 | sizes | {"intermediate_size": hidden, "tie_word_embeddings": tied}
    return family_of(published).config_of(published)
