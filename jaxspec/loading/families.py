"""Published model families, one row each: how ``config.json`` is read and written, and the names of the weights.

Our leaves are named by their path in the parameters (``attention.qkv``), those of layer i without ``layers.i.``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxspec.loading._gemma import (
    GEMMA1_WEIGHTS,
    GEMMA_WEIGHTS,
    read_gemma1,
    read_gemma2,
    read_gemma3,
    write_gemma,
    write_gemma1,
)
from jaxspec.loading._gpt2 import GPT2_WEIGHTS, read_gpt2, write_gpt2
from jaxspec.loading._gpt_oss import GPT_OSS_WEIGHTS, read_gpt_oss, write_gpt_oss
from jaxspec.loading._like_llama import (
    PHI_WEIGHTS,
    read_granite,
    read_phi3,
    read_smollm3,
    write_granite,
    write_phi3,
    write_smollm3,
)
from jaxspec.loading._llama import (
    LLAMA_WEIGHTS,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
    write_llama,
    write_mistral,
    write_qwen,
)
from jaxspec.loading._mixtures import (
    MIXTRAL_WEIGHTS,
    QWEN_MOE_WEIGHTS,
    read_mixtral,
    read_qwen2_moe,
    read_qwen3_moe,
    write_mixtral,
    write_qwen2_moe,
    write_qwen3_moe,
)
from jaxspec.loading._neox import NEOX_WEIGHTS, read_neox, write_neox
from jaxspec.loading._olmo import OLMO_WEIGHTS, read_olmo2, read_olmo3, write_olmo2, write_olmo3
from jaxspec.loading._opt import OPT_WEIGHTS, read_opt, write_opt
from jaxspec.loading._rope import Config
from jaxspec.loading._unsupported import check_unread, unknown_architecture
from jaxspec.loading.rules import Rule
from jaxspec.models.base import Params
from jaxspec.models.config import DecoderConfig


@dataclass(frozen=True)
class Family:
    """One published family.

    Attributes:
        model_type: its name in ``config.json``.
        architecture: its class name there.
        read: ``config.json`` → our configuration.
        write: our configuration → the keys of ``config.json``, except names, vocabulary size and tying.
        weights: name of a leaf → how published arrays make it.
        reads: keys (``sliding_window`` or of ``_unsupported.NEUTRAL``) that the family reads; others reject them.
        layers: key of the number of layers.
    """

    model_type: str
    architecture: str
    read: Callable[[Config], DecoderConfig]
    write: Callable[[DecoderConfig], Config]
    weights: dict[str, Rule]
    reads: frozenset[str] = frozenset()
    layers: str = "num_hidden_layers"

    def config_of(self, config: Config) -> DecoderConfig:
        """Return our configuration of a ``config.json``.

        Raises:
            ValueError: a setting that changes results and that the family does not read, or an unknown value.
        """
        check_unread(config, self.reads)
        return self.read(config)

    def config_json(self, config: DecoderConfig) -> Config:
        """Return the ``config.json`` of our configuration."""
        names = {"model_type": self.model_type, "architectures": [self.architecture]}
        return names | {"vocab_size": config.vocab_size, "tie_word_embeddings": config.ends.tied} | self.write(config)

    def represents(self, config: DecoderConfig) -> bool:
        """Return whether the family's ``config.json`` holds all of our configuration."""
        try:
            return self.read(self.config_json(config)) == config
        except (ValueError, KeyError, TypeError):
            return False


WINDOW = frozenset({"sliding_window"})
PARALLEL = frozenset({"use_parallel_residual"})
SCALED = frozenset({"attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"})
CAPPED = WINDOW | {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"}
FAMILIES = (
    Family("llama", "LlamaForCausalLM", read_llama, write_llama, LLAMA_WEIGHTS),
    Family("mistral", "MistralForCausalLM", read_mistral, write_mistral, LLAMA_WEIGHTS, WINDOW),
    Family("qwen2", "Qwen2ForCausalLM", read_qwen2, write_qwen, LLAMA_WEIGHTS, WINDOW),
    Family("qwen3", "Qwen3ForCausalLM", read_qwen3, write_qwen, LLAMA_WEIGHTS, WINDOW),
    Family("mixtral", "MixtralForCausalLM", read_mixtral, write_mixtral, MIXTRAL_WEIGHTS, WINDOW),
    Family("qwen2_moe", "Qwen2MoeForCausalLM", read_qwen2_moe, write_qwen2_moe, QWEN_MOE_WEIGHTS, WINDOW),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", read_qwen3_moe, write_qwen3_moe, QWEN_MOE_WEIGHTS, WINDOW),
    Family("gpt_oss", "GptOssForCausalLM", read_gpt_oss, write_gpt_oss, GPT_OSS_WEIGHTS, WINDOW),
    Family("phi3", "Phi3ForCausalLM", read_phi3, write_phi3, PHI_WEIGHTS, WINDOW),
    Family("smollm3", "SmolLM3ForCausalLM", read_smollm3, write_smollm3, LLAMA_WEIGHTS, WINDOW | {"no_rope_layers"}),
    Family("granite", "GraniteForCausalLM", read_granite, write_granite, LLAMA_WEIGHTS, SCALED),
    Family("olmo2", "Olmo2ForCausalLM", read_olmo2, write_olmo2, OLMO_WEIGHTS),
    Family("olmo3", "Olmo3ForCausalLM", read_olmo3, write_olmo3, OLMO_WEIGHTS, WINDOW),
    Family("gpt_neox", "GPTNeoXForCausalLM", read_neox, write_neox, NEOX_WEIGHTS, PARALLEL),
    Family("opt", "OPTForCausalLM", read_opt, write_opt, OPT_WEIGHTS),
    Family("gpt2", "GPT2LMHeadModel", read_gpt2, write_gpt2, GPT2_WEIGHTS, layers="n_layer"),
    Family("gemma", "GemmaForCausalLM", read_gemma1, write_gemma1, GEMMA1_WEIGHTS),
    Family("gemma2", "Gemma2ForCausalLM", read_gemma2, write_gemma, GEMMA_WEIGHTS, CAPPED),
    Family("gemma3_text", "Gemma3ForCausalLM", read_gemma3, write_gemma, GEMMA_WEIGHTS, CAPPED),
)


def family_of(config: Config) -> Family:
    """Return the family of a ``config.json``.

    Raises:
        ValueError: an unsupported one, or ``architectures`` and ``model_type`` of two families.
    """
    # The backbone of Medusa-2, with its heads in the same files, is read as what it is without them.
    named = [name for name in config.get("architectures") or () if not str(name).startswith("MedusaModel")]
    model_type = config.get("model_type")
    for family in FAMILIES:
        if family.architecture in named or (not named and model_type == family.model_type):
            if model_type not in (None, family.model_type):
                raise ValueError(
                    f"expected model_type {family.model_type} for {family.architecture}, got {model_type}; the two "
                    "read config.json differently: correct the one that is wrong"
                )
            return family
    raise unknown_architecture(config, ", ".join(family.architecture for family in FAMILIES))


def family_for(config: DecoderConfig) -> Family:
    """Return the first family whose ``config.json`` holds all of our configuration.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if family.represents(config):
            return family
    raise ValueError(
        f"expected a configuration of one of {[family.model_type for family in FAMILIES]}, got {config}; no "
        "config.json of these families holds all of it"
    )


def representable(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """Return the same function in a configuration that a family has: a scale of the embedding is multiplied into it."""
    if any(family.represents(config) for family in FAMILIES):
        return config, params
    scale = config.width**0.5 if config.ends.embedding_scale is None else config.ends.embedding_scale
    head = params.get("head", params["embedding"])
    table = np.asarray(params["embedding"])
    scaled = table * np.asarray(scale, table.dtype)  # rounded as in ``Decoder.embed``
    ends = replace(config.ends, tied=False, embedding_scale=1.0)
    return replace(config, ends=ends), {**params, "embedding": scaled, "head": head}
