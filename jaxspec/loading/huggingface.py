"""Published checkpoints, read array by array straight onto a mesh: config.json, safetensors, tokenizer."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxspec.core.files import read_json, reading
from jaxspec.devices.sharding import check_shardable, leaf_shardings, repeat_heads, with_repeated_heads
from jaxspec.loading._mxfp4 import PACKED, Mxfp4Weights
from jaxspec.loading._towers import TextWeights, has_tower, text_part
from jaxspec.loading._unsupported import check_plain, is_mxfp4
from jaxspec.loading._weights import Arrays, Weights
from jaxspec.loading.families import Family, family_of
from jaxspec.loading.hub import folder_of
from jaxspec.loading.parameters import check_memory, devices_of, float_dtype, leaf_dtype, like_params, named_leaves
from jaxspec.loading.rules import Rule
from jaxspec.models import network, partition
from jaxspec.models.base import Model, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.quantize import is_int8, is_quantized, quantized_matrix
from jaxspec.text import Text

CONFIG = "config.json"
#: Published arrays that can be computed from the configuration, and Medusa's heads (``load_draft``).
IGNORED = re.compile(r"rotary_emb\.inv_freq|\.attn\.bias|\.attention\.bias|\.masked_bias|^medusa_head\.")
#: For each leaf: its rule, and the names of the arrays that make it.
Sources = dict[tuple, tuple[Rule, list[str]]]


def load_huggingface(
    path: str | Path,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    int8: bool = False,
    progress: bool = False,
    revision: str | None = None,
) -> Model:
    """Read a published checkpoint, each array straight to its devices.

    Of Gemma 3 with images the text part is read, and the arrays that are left out are named on standard error.

    Args:
        path: folder with ``config.json``, ``*.safetensors`` and, for text, ``tokenizer.json`` or ``tokenizer.model``;
            or its name on the hub, "owner/name", where huggingface_hub is installed.
        mesh: of the parameters, tensor-parallel over its ``model`` axis; default: the first device.
        dtype: of the matrices (norms stay float32); default: float32 on CPU, otherwise the checkpoint's own.
        int8: keep the layers' matrices in eight bits with a scale for every output feature.
        progress: show a progress bar.
        revision: branch, tag or commit on the hub.

    Returns:
        A ``Model`` with its ``text``: tokenizer, chat template, stop tokens.

    Raises:
        ValueError: a name that the hub does not have or that cannot be reached, an unknown architecture, pickles, a
            truncated file, weights that are missing, unexpected or of another shape (named), a mesh that does not
            divide the heads, a dtype that is not a float.
        MemoryError: the parameters do not fit; names ways to make them smaller.
    """
    folder = folder_of(path, revision)
    published = _config(folder)
    with reading(folder / CONFIG, "the configuration of a supported family"):
        family_of(published)
        check_plain(folder, published)
    weights, text = _weights(folder, published), Text.read(folder)
    return read_published(folder / CONFIG, published, weights, text, mesh, dtype, int8=int8, progress=progress)


def read_published(
    path: Path,
    published: dict[str, Any],
    weights: Arrays,
    text: Text | None,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    int8: bool = False,
    progress: bool = False,
) -> Model:
    """Read the arrays that a ``config.json`` describes, each straight to its devices.

    Args:
        path: of the configuration, for messages.
        published: contents of the ``config.json``.
        weights: arrays by published name.
        text: of the model.
        mesh: as ``load_huggingface``, and so on.
        dtype: likewise.
        int8: likewise.
        progress: likewise.

    Raises:
        ValueError: as ``load_huggingface``.
        MemoryError: the parameters do not fit.
    """
    own_dtype = _dtype(published, dtype, mesh)
    with reading(path, "the configuration of a supported family"):
        family = family_of(published)
        _check_layers(published, family.layers, weights)
        config = _tied(family, family.config_of(published), weights)
        sources = _sources(family, config, weights)
    check_shardable(config, mesh)
    check_memory(config, own_dtype, mesh, int8)
    params = _read(config, sources, weights, mesh, own_dtype, int8, progress)
    return Model(network(with_repeated_heads(config, mesh)), params, text)


def read_config(path: str | Path) -> DecoderConfig:
    """Read the shape of a published model: of a folder with ``config.json``, or of such a file; no weights.

    Raises:
        ValueError: no such file, or a configuration of no supported family.
    """
    file = Path(path)
    file = file / CONFIG if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"{path}: expected a folder with config.json, or such a file, got none")
    published = text_part(read_json(file))
    with reading(file, "the configuration of a supported family"):
        return family_of(published).config_of(published)


def published_dtype(folder: Path) -> str:
    """Return the dtype in ``config.json``; float32 for float64, which is not computed here."""
    return _own_dtype(_config(folder))


def rule_of(family: Family, path: tuple, config: DecoderConfig) -> tuple[Rule, list[str]]:
    """Return the rule of one leaf, and the published names that it needs."""
    steps = _name(path).split(".")
    layer, name = (steps[1], ".".join(steps[2:])) if steps[0] == "layers" else ("", ".".join(steps))
    rule = family.weights[name]
    return rule, rule.published(layer, config.experts.count if config.experts else 0)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder}: expected a folder with config.json and *.safetensors, got no config.json")
    return text_part(read_json(file))


def _weights(folder: Path, published: dict[str, Any]) -> Arrays:
    if is_mxfp4(published):
        return Mxfp4Weights(Weights(folder, packed=PACKED))
    return TextWeights(Weights(folder), folder) if has_tower(published) else Weights(folder)


def _check_layers(published: dict[str, Any], key: str, weights: Arrays) -> None:
    """Check the number of layers before shapes of as many layers are made."""
    count, most = published.get(key), len(weights.entries)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= most:
        raise ValueError(
            f"expected {key} from 1 to the {most} arrays there are, got {count!r:.80}; config.json belongs "
            "to another model"
        )


def _dtype(published: dict[str, Any], dtype: Any, mesh: Mesh | None) -> jnp.dtype:
    if dtype is not None:
        return float_dtype(dtype)
    return float_dtype("float32" if devices_of(mesh)[0].platform == "cpu" else _own_dtype(published))


def _own_dtype(published: dict[str, Any]) -> str:
    own = str(published.get("dtype") or published.get("torch_dtype") or "float32")
    return "float32" if own == "float64" else own


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _in_files(name: str, weights: Arrays) -> str:
    """Return the name in the files of a published name; files of a bare decoder lack the first part."""
    return name if name in weights.entries else name.partition(".")[2] if name.count(".") > 1 else name


def _tied(family: Family, config: DecoderConfig, weights: Arrays) -> DecoderConfig:
    """Return the configuration, untied if the files have a head that differs from the embedding, as in transformers."""
    (head,), (table,) = (family.weights[name].names for name in ("head", "embedding"))
    table = _in_files(table, weights)
    if not config.ends.tied or head not in weights.entries or table not in weights.entries:
        return config
    return config if weights.equal(head, table) else replace(config, ends=replace(config.ends, tied=False))


def _sources(family: Family, config: DecoderConfig, weights: Arrays) -> Sources:
    """Return the arrays of every leaf; check names and shapes before anything is read.

    Raises:
        ValueError: arrays that are missing, unexpected or of another shape.
    """
    sources: Sources = {}
    missing: list[str] = []
    most = sum(math.prod(entry.shape) for entry in weights.entries.values())
    for path, leaf in named_leaves(config):
        if leaf.size > most:
            raise ValueError(
                f"expected at most {most} numbers in {_name(path)}, as many as the files have in all, got {leaf.size}; "
                "config.json belongs to another model"
            )
        rule, published = rule_of(family, path, config)
        names = [_in_files(name, weights) for name in published]
        is_table = published == list(family.weights["embedding"].names)
        if config.ends.tied and is_table and names[0] not in weights.entries:
            names = list(family.weights["head"].names)
        absent = [name for name, own in zip(published, names, strict=True) if own not in weights.entries]
        missing += absent
        if not absent:
            _check_shapes(rule, names, leaf.shape, config, weights)
            sources[path] = rule, names
    if missing:
        raise ValueError(f"expected weights that the files do not have: {_some(missing)}")
    used = {name for _, names in sources.values() for name in names}
    used |= set(family.weights["head"].names) if config.ends.tied else set()
    if extra := [name for name in weights.entries if name not in used and not IGNORED.search(name)]:
        raise ValueError(f"the files have weights that config.json does not describe: {_some(extra)}")
    return sources


def _check_shapes(rule: Rule, names: list[str], shape: tuple[int, ...], config: DecoderConfig, weights: Arrays) -> None:
    zeros = np.broadcast_to(np.zeros((), np.float32), shape)
    for name, part in zip(names, rule.split(zeros, config), strict=True):
        if weights.entries[name].shape != part.shape:
            raise ValueError(
                f"weight {name}: expected shape {part.shape}, got {weights.entries[name].shape}; "
                "config.json belongs to another model"
            )


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(
    config: DecoderConfig, sources: Sources, weights: Arrays, mesh: Mesh | None, dtype: Any, int8: bool, progress: bool
) -> Params:
    like = like_params(with_repeated_heads(config, mesh), dtype, int8)
    shardings = leaf_shardings(partition(like), like, mesh)

    def leaf(path: tuple, sharding: Any) -> Any:
        rule, names = sources[path]
        rounded = int8 and is_quantized(path)
        own = jnp.float32 if rounded else leaf_dtype(path, dtype)
        array = rule.join([_cast(weights[name], own, name) for name in names], config)
        array = repeat_heads(path, array, config, mesh)
        return jax.device_put(quantized_matrix(array) if rounded else array, sharding)

    pairs = jax.tree_util.tree_leaves_with_path(shardings, is_leaf=is_int8)
    leaves = [leaf(*pair) for pair in tqdm(pairs, "load", disable=not progress, unit="array")]
    return jax.tree.unflatten(jax.tree.structure(shardings, is_leaf=is_int8), leaves)


def _cast(array: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """Return the array in another dtype.

    Raises:
        ValueError: numbers above 65504, the largest of float16.
    """
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if cast.dtype == np.float16 != array.dtype and not np.isfinite(cast).all():
        raise ValueError(f"weight {name}: expected numbers within float16, got larger ones; load it as bfloat16")
    return cast
