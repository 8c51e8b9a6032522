"""Drafts written in the formats of the programs that publish them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxspec.drafts import Draft
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.feature_drafter import FeatureDrafter
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.drafts.table import TableDrafter
from jaxspec.loading._draft_files import CONFIG
from jaxspec.loading._draft_rules import INDEX, name_of, rule_for
from jaxspec.loading._eagles import FLAGS
from jaxspec.loading._llama import write_layer_types, write_sizes
from jaxspec.loading._ngrams import write_table
from jaxspec.loading._weights import write
from jaxspec.loading.parameters import float_dtype, leaf_dtype
from jaxspec.models.base import Params
from jaxspec.models.config import DecoderConfig

Config = dict[str, Any]
#: Arrays of a draft's vocabulary, which all formats name alike.
MAPS = ("d2t", "t2d")


def save_draft(draft: Draft, path: str | Path, *, dtype: Any = None) -> None:
    """Write a draft that reads hidden states of its target, for ``load_draft`` and the programs of its kind.

    EAGLE-3 raw (vLLM, SGLang) where that format holds it, else as vllm-project/speculators; Medusa as vLLM; EAGLE and
    Hydra as their authors, embedding and head of the target included.

    Args:
        draft: EAGLE, EAGLE-3, Medusa or Hydra, or a table of n-grams.
        path: folder, made if it does not exist.
        dtype: of the matrices; default: their own.

    Raises:
        ValueError: a draft of another kind, or a dtype that is not a float.
    """
    if isinstance(draft.drafter, TableDrafter):
        write_table(draft, Path(path))
        return
    network = draft.drafter.network if isinstance(draft.drafter, FeatureDrafter) else None
    if network is None or type(network) not in WRITERS:
        raise ValueError(
            "expected an EAGLE, EAGLE-3, Medusa or Hydra draft or a table of n-grams, got "
            f"{type(draft.drafter).__name__}; a language model is written by save_huggingface or save_model"
        )
    dtype, folder = None if dtype is None else float_dtype(dtype), Path(path)
    config, rename = WRITERS[type(network)](network)
    if network.reads.taps and not isinstance(network, Eagle3):
        config["jaxspec"] = {"taps": list(network.reads.taps)}
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(network, draft.params, dtype)
    write(folder, ((name, array) for own, array in arrays for name in ([own] if own in MAPS else rename(own))))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def _arrays(network: Any, params: Params, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Return (canonical name, array) of every leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array, name = np.asarray(leaf), name_of(path)
        if name == INDEX:
            ids = np.argsort(array, kind="stable")[: network.scored]  # in the order of the head's rows
            yield "d2t", ids - np.arange(len(ids))
            yield "t2d", array < network.scored
            continue
        rule, written = rule_for(network, name), leaf_dtype(path, array.dtype if dtype is None else dtype)
        yield from zip(rule.names, (part.astype(written) for part in rule.split(array, network.config)), strict=True)


#: From a canonical name to the names that are written.
Rename = Callable[[str], list[str]]


def _sizes(config: DecoderConfig, num_tokens: int) -> Config:
    flags = {
        "attention_bias": config.attention.out_bias,
        "qkv_bias": config.attention.qkv_bias,
        "mlp_bias": config.block.bias,
    }
    kind = {"model_type": "qwen3" if config.attention.norm_heads else "llama", "vocab_size": num_tokens}
    window = {} if config.attention.window is None else write_layer_types(config)
    return kind | write_sizes(config) | flags | window | {"tie_word_embeddings": False}


def _eagle3(network: Eagle3) -> tuple[Config, Rename]:
    """Write the raw format, or that of speculators where settings or taps need it."""
    flags = {name: getattr(network, name) for name in FLAGS}
    sizes, taps = _sizes(network.config, network.num_tokens), list(network.reads.taps)
    common = {"draft_vocab_size": network.config.vocab_size, "target_hidden_size": network.target_width}
    ids = {"eagle_aux_hidden_state_layer_ids": taps}
    raw = not any(flags.values()) and network.config.num_layers == 1 and taps[:1] != [1]
    if raw:
        own = {"architectures": ["LlamaForCausalLMEagle3"], "eagle_config": ids | {"use_aux_hidden_state": bool(taps)}}
        return sizes | common | own, lambda name: [name.replace("layers.0.", "midlayer.")]
    about = {"architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3", "speculators_version": "0.9.0"}
    return about | common | flags | ids | {"transformer_layer_config": sizes}, lambda name: [name]


def _eagle(network: Eagle) -> tuple[Config, Rename]:
    """Write EAGLE's format, without the target's head unless it is a part of it."""
    about = {"architectures": ["LlamaForCausalLM"], "bias": network.fc_bias}
    left_out = () if network.head_tokens else ("lm_head.weight",)
    return _sizes(network.config, network.num_tokens) | about, lambda name: [name] * (name not in left_out)


def _medusa(network: Medusa) -> tuple[Config, Rename]:
    """Write vLLM's format, in which a repeated block is listed several times."""
    about = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": network.target_width,
        "vocab_size": network.num_tokens,
        "num_heads": network.depth,
        "num_hidden_layers": network.blocks * network.repeats,
        "medusa_fc_bias": network.fc_bias,
        "original_lm_head": network.shared_head,
    }

    def rename(name: str) -> list[str]:
        kind, number, *rest = name.split(".")
        if kind != "blocks":
            return [name]
        first = int(rest[1]) * network.repeats
        return [f"{kind}.{number}.layers.{first + again}.{rest[2]}" for again in range(network.repeats)]

    return about, rename


def _hydra(network: Hydra) -> tuple[Config, Rename]:
    """Write the numbers of dropout modules with a prefix layer, and the inner block as often as it is applied."""
    step = 1 if network.config is None else 2
    about = {
        "grounded_heads": True,
        "hidden_state_offset": 0,
        "hydra_head_arch": "mlp" if network.config is None else "prefix-mlp",
        "hydra_num_heads": network.depth,
        "hydra_num_layers": network.repeats + 1,
    }

    def rename(name: str) -> list[str]:
        kind, number, *rest = name.split(".")
        if kind == "hydra_lm_head":
            return [".".join((kind, number, *(["1"] if step == 2 else []), *rest))]
        if kind != "hydra_mlp":
            return [name]
        modules = [0] if rest[0] == "0" else range(1, 1 + network.repeats)
        return [".".join((kind, number, str(step * module + step - 1), *rest[1:])) for module in modules]

    return about, rename


#: From a kind of network to its configuration, and the names of its arrays.
WRITERS: dict[type, Callable[[Any], tuple[Config, Rename]]] = {
    Eagle3: _eagle3,
    Eagle: _eagle,
    Medusa: _medusa,
    Hydra: _hydra,
}
