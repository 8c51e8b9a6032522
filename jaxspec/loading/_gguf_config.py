"""The ``config.json`` of a GGUF file and the published names of its arrays, which the gguf library's own table has."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec.loading._gguf_architectures import Architecture, architecture_of, decimal
from jaxspec.loading._gguf_file import GgufFile, Undo, library
from jaxspec.loading._rope import Config, rotary_of
from jaxspec.loading.families import Family, family_of

#: The factors of rotary wavelengths that Llama 3.1 and later files carry as an array.
ROPE_FACTORS = "rope_freqs.weight"
#: Published settings that such factors can come from.
LLAMA3 = tuple(
    {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192} for factor in (8.0, 32.0)
)  # fmt: skip
#: Special tokens in ``config.json``, and their names in the file.
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def config_of(file: GgufFile) -> Config:
    """Return the ``config.json`` of a file.

    Raises:
        ValueError: an architecture, layers of different sizes, or rotary positions that are not read; a size that is
            missing.
    """
    row, get = architecture_of(file), file.get
    heads = _size(file, "attention.head_count")
    width, head = _size(file, "embedding_length"), get("attention.key_length")
    head = width // heads if head is None else int(head)
    if (values := get("attention.value_length", head)) != head:
        raise ValueError(f"{file.path}: expected keys and values of one size, got {head} and {values}")
    layers, most = _size(file, "block_count"), len(file.tensors)
    if not 0 < layers <= most:
        raise ValueError(f"{file.path}: expected block_count from 1 to the {most} arrays there are, got {layers}")
    config = {
        "architectures": [row.published],
        "model_type": _model_type(row),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _size(file, "attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": _size(file, "feed_forward_length", get("expert_feed_forward_length")),
        "rms_norm_eps": decimal(get("attention.layer_norm_rms_epsilon", 1e-6)),
        "max_position_embeddings": _size(file, "context_length"),
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": decimal(get("rope.freq_base", 10_000.0)),
        "partial_rotary_factor": int(get("rope.dimension_count", head)) / head,
        "dtype": "float32",
        **{f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in TOKENS.items()},
        **_scaling(file, head),
    }
    biased = "blk.0.attn_q.bias" in file.tensors
    return config | ({"attention_bias": True} if biased and row.pairs else {}) | row.special(file, config)


def names_of(file: GgufFile, config: Config) -> dict[str, str]:
    """Return name in the file → published name, of the arrays that the family reads."""
    family, gguf = family_of(config), library()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[file.architecture], config["num_hidden_layers"])
    found = {}
    for published in published_names(family, config["num_hidden_layers"]):
        stem, _, kind = published.replace(".experts.{}.", ".experts.").rpartition(".")
        if (own := table.get_name(stem)) is not None:
            found[f"{own}.{kind}"] = published
    return found


def published_names(family: Family, layers: int) -> list[str]:
    """Return all names of arrays that a family may have, with a ``{}`` for the number of an expert."""
    names = [name for rule in family.weights.values() for name in rule.names]
    return list(dict.fromkeys(name.format(layer, "{}") for name in names for layer in range(layers)))


def undo_of(row: Architecture, config: Config) -> Callable[[str], Undo]:
    """Return published name → the step from the array in the file to the published one."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def undo(name: str) -> Undo:
        letter = name.split(".")[-2] if "." in name else name
        if row.pairs and letter in heads:
            return Undo(lambda rows: _halves(rows, heads[letter]))
        if row.one_more and letter.endswith("norm"):
            return Undo(lambda scale: scale - np.float32(1))
        if row.transposed and letter.startswith("c_") and name.endswith("weight"):
            return Undo(np.transpose, lambda shape: shape[::-1])
        if letter == "shared_expert_gate":
            return Undo(lambda row: row.reshape(1, -1), lambda shape: (1, math.prod(shape)))
        return Undo()

    return undo


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of heads with the first of every pair before the second of every pair."""
    parts = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.swapaxes(parts, 1, 2).reshape(rows.shape)


def _model_type(row: Architecture) -> str:
    return family_of({"architectures": [row.published]}).model_type


def _size(file: GgufFile, name: str, default: Any = None) -> int:
    value = file.get(name, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{file.path}: expected {file.architecture}.{name} to be one whole number, got {value!r:.80}")
    return value


def _scaling(file: GgufFile, head: int) -> Config:
    """Return ``rope_scaling``."""
    kind = file.get("rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        return {"rope_scaling": _llama3(file, head)}
    if kind == "none":
        return {}
    length = file.get("rope.scaling.original_context_length")
    original = {} if length is None else {"original_max_position_embeddings": length}
    return {"rope_scaling": {"rope_type": kind, "factor": decimal(file.get("rope.scaling.factor", 1.0)), **original}}


def _llama3(file: GgufFile, head: int) -> Config:
    """Return the published settings whose factors are those of the file."""
    theta, factors = float(file.get("rope.freq_base", 10_000.0)), np.asarray(file.tensors[ROPE_FACTORS].data)
    for scaling in LLAMA3:
        plain = rotary_of({"rope_theta": theta}).frequencies(head)
        scaled = rotary_of({"rope_theta": theta, "rope_scaling": scaling}).frequencies(head)
        if factors.shape == plain.shape and np.allclose(plain / scaled, factors, rtol=1e-4):
            return scaling
    raise ValueError(
        f"{file.path}: expected {ROPE_FACTORS} of Llama 3.1 (8 times 8,192 positions) or 3.2 (32 times), got others; "
        "take the checkpoint that the file was made from"
    )
