"""Models written as published checkpoints: config.json, safetensors, and the tokenizer's files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.files import read_json
from jaxspec.drafts import num_streams
from jaxspec.loading._weights import SHARD_BYTES, write
from jaxspec.loading.families import Family, family_for, representable
from jaxspec.loading.huggingface import CONFIG, rule_of
from jaxspec.loading.parameters import float_dtype, leaf_dtype
from jaxspec.models.base import Model, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.quantize import Int8, is_int8
from jaxspec.models.vocabulary import unfitted

#: Default sampling of a model.
GENERATION = "generation_config.json"
#: Keys of config.json that our configuration does not have, copied from the original.
KEPT = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "unk_token_id",
    "max_position_embeddings",
    "initializer_range",
    "init_std",
    "attention_dropout",
    "dropout",
    "layerdrop",
    "use_cache",
)


def save_huggingface(
    model: Model, path: str | Path, *, dtype: Any = None, shard_bytes: int = SHARD_BYTES, like: str | Path | None = None
) -> None:
    """Write a model that ``transformers`` can load: config.json, safetensors, and the tokenizer's files.

    A scale of the embedding that no family has is multiplied into the embedding, with a separate head.

    Args:
        model: network and parameters; eight-bit weights are written as floats.
        path: folder, made if it does not exist.
        dtype: of the matrices; default: their own.
        shard_bytes: size of the largest file.
        like: folder whose generation_config.json is copied, and whose config.json gives the keys that a network does
            not have (longest text, special tokens); default: the folder that the model's tokenizer came from.

    Raises:
        ValueError: a configuration that no family has, or a dtype that is not a float.
    """
    model = unfitted(model)
    if num_streams(model.network):
        raise ValueError(
            "expected a plain model, got one with streams, which no family has; pass jaxspec.drafts.limited(model, 0)"
        )
    dtype = None if dtype is None else float_dtype(dtype)
    config, params = representable(model.network.config, model.params)
    family, folder = family_for(config), Path(path)
    files = original_files(model, like)
    original, generation = (read_json(files[name]) if name in files else {} for name in (CONFIG, GENERATION))
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, _arrays(family, config, params, dtype), shard_bytes)
    if model.text is not None:
        model.text.write(folder)
    own = jnp.dtype(params["embedding"].dtype if dtype is None else dtype).name
    about = {"eos_token_id": None} | {name: original[name] for name in KEPT if name in original} | {"dtype": own}
    if model.text is not None and list(model.text.stop) != _stop_tokens(generation, original):
        about["eos_token_id"] = list(model.text.stop) or None
        generation |= {"eos_token_id": about["eos_token_id"]} if generation else {}
    (folder / CONFIG).write_text(json.dumps(about | family.config_json(config), indent=1) + "\n")
    if generation:
        (folder / GENERATION).write_text(json.dumps(generation, indent=1) + "\n")


def original_files(model: Model, like: str | Path | None) -> dict[str, Path]:
    """Return the paths of config.json and generation_config.json in ``like``, or else next to the tokenizer's files."""
    if like is not None:
        return {name: Path(like) / name for name in (CONFIG, GENERATION) if (Path(like) / name).is_file()}
    files = model.text.files if model.text else {}
    return {name: files[name] for name in (CONFIG, GENERATION) if name in files and files[name].is_file()}


def _stop_tokens(generation: dict[str, Any], config: dict[str, Any]) -> list[int]:
    """Return the stop tokens of published files."""
    ids = generation.get("eos_token_id")
    ids = config.get("eos_token_id") if ids is None else ids
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _arrays(family: Family, config: DecoderConfig, params: Params, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Return (published name, array) of every leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_int8):
        rule, names = rule_of(family, path, config)
        array = _as_float(leaf)
        own = params["embedding"].dtype if isinstance(leaf, Int8) else array.dtype
        written = leaf_dtype(path, own if dtype is None else dtype)
        yield from zip(names, (part.astype(written) for part in rule.split(array, config)), strict=True)


def _as_float(leaf: Any) -> np.ndarray:
    if isinstance(leaf, Int8):
        return np.asarray(leaf.values, np.float32) * np.asarray(leaf.scale, np.float32)[..., None]
    return np.asarray(leaf)
