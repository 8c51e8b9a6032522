"""Published checkpoints, read straight onto a mesh and written back: config.json, safetensors, tokenizer."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxspec.core.files import read_json, reading
from jaxspec.devices.sharding import (
    MODEL_AXIS,
    axis_size,
    check_shardable,
    leaf_shardings,
    repeat_heads,
    with_repeated_heads,
)
from jaxspec.loading._families import FAMILIES, Family, family_for, family_of
from jaxspec.loading._unsupported import check_plain
from jaxspec.loading._weights import SHARD_BYTES, Weights, write
from jaxspec.models import init_params, network, partition
from jaxspec.models.base import Model, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.quantize import Int8, is_quantized, quantized, quantized_matrix
from jaxspec.models.vocabulary import unfitted
from jaxspec.text import Text

#: Published arrays that hold nothing of their own.
IGNORED = re.compile(r"rotary_emb\.inv_freq|\.attn\.bias|\.masked_bias")
#: What says which network the weights are of.
CONFIG = "config.json"
#: How a model is sampled by default.
GENERATION = "generation_config.json"
#: What config.json says that our configuration does not.
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
#: What parameters may be of.
DTYPES = ("float32", "bfloat16", "float16")
DTYPES_IN_WORDS = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
#: Where Linux says how much memory is free.
MEMORY = Path("/proc/meminfo")
#: Room that is left for activations and caches when memory is estimated.
HEADROOM = 1.1


def load_huggingface(
    path: str | Path, mesh: Mesh | None = None, dtype: Any = None, *, int8: bool = False, progress: bool = False
) -> Model:
    """Reads a published checkpoint, array by array, each straight to where it will live.

    Args:
        path: folder with ``config.json``, ``*.safetensors`` and, for text, ``tokenizer.json`` or ``tokenizer.model``.
        mesh: where the parameters go, tensor-parallel over its ``model`` axis; default: the first device.
        dtype: of the matrices (norms stay float32); default: float32 on CPU, else what ``config.json`` says.
        int8: keep the layers' matrices in eight bits with a scale for every output feature.
        progress: show a bar.

    Returns:
        A ``Model`` with its ``text``: tokenizer, chat template, tokens that end a sequence.

    Raises:
        ValueError: unknown architecture, pickles, a truncated file, weights that are missing, unexpected or mis-shaped
            (named), a mesh that does not divide the heads, a dtype that is not a float.
        MemoryError: the parameters would not fit; says what would.
    """
    folder = Path(path)
    published = _config(folder)
    with reading(folder / CONFIG, "the configuration of a supported family"):
        family = family_of(published)
        check_plain(folder, published)
    kind, weights = _dtype(published, dtype, mesh), Weights(folder)
    with reading(folder / CONFIG, "the configuration of a supported family"):
        _check_layers(published, weights)
        config = _tied(family, family.config_of(published), weights)
        sources = _sources(family, config, weights)
    check_shardable(config, mesh)
    check_memory(config, kind, mesh, int8)
    params = _read(config, sources, weights, mesh, kind, int8, progress)
    return Model(network(with_repeated_heads(config, mesh)), params, Text.read(folder))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder}: expected a folder with config.json and *.safetensors, got no config.json")
    return read_json(file)


def _check_layers(published: dict[str, Any], weights: Weights) -> None:
    """Before as many layers are made as the file says there are."""
    count, most = published.get("num_hidden_layers"), len(weights.entries)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= most:
        raise ValueError(
            f"expected num_hidden_layers from 1 to the {most} arrays there are, got {count!r:.80}; config.json belongs "
            "to another model"
        )


def _dtype(published: dict[str, Any], asked: Any, mesh: Mesh | None) -> jnp.dtype:
    if asked is not None:
        return float_dtype(asked)
    return float_dtype("float32" if _devices(mesh)[0].platform == "cpu" else _own_dtype(published))


def float_dtype(asked: Any) -> jnp.dtype:
    """A dtype that parameters may have.

    Raises:
        ValueError: it is none of ``DTYPES``: 8-bit floats need scales, which a cast does not make; integers hold no
            weights; float64 is not computed here.
    """
    try:
        kind = jnp.dtype(asked)
    except TypeError as error:
        raise ValueError(f"expected dtype {DTYPES_IN_WORDS}, got {asked!r}") from error
    if kind.name not in DTYPES:
        raise ValueError(f"expected dtype {DTYPES_IN_WORDS}, got {kind}; for eight bits pass int8=True")
    return kind


def _own_dtype(published: dict[str, Any]) -> str:
    own = str(published.get("dtype") or published.get("torch_dtype") or "float32")
    return "float32" if own == "float64" else own


def published_dtype(folder: Path) -> str:
    """The dtype that a published checkpoint says it has on disk; float32 for float64, which is not computed here."""
    return _own_dtype(_config(folder))


def _named_leaves(config: DecoderConfig) -> list[tuple[tuple, jax.ShapeDtypeStruct]]:
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return jax.tree_util.tree_leaves_with_path(shapes)


def _keys(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _rule(family: Family, path: tuple) -> tuple[Any, list[str]]:
    """The rule of one leaf and the published names it takes."""
    steps = _keys(path).split(".")
    layer, name = (steps[1], ".".join(steps[2:])) if steps[0] == "layers" else ("", ".".join(steps))
    rule = family.weights[name]
    return rule, [published.format(layer) for published in rule.names]


def _present(name: str, weights: Weights) -> str:
    """The name that the files have for a published one; those of a bare decoder lack the prefix."""
    return name if name in weights.entries else name.removeprefix("model.")


def _tied(family: Family, config: DecoderConfig, weights: Weights) -> DecoderConfig:
    """The configuration with a head of its own if the files have one that is not the embedding, as in transformers."""
    (head,), (table,) = (family.weights[name].names for name in ("head", "embedding"))
    table = _present(table, weights)
    if not config.ends.tied or head not in weights.entries or table not in weights.entries:
        return config
    return config if weights.equal(head, table) else replace(config, ends=replace(config.ends, tied=False))


def _sources(family: Family, config: DecoderConfig, weights: Weights) -> dict[tuple, tuple[Any, list[str]]]:
    """Which arrays make each leaf; checks names and shapes before anything is read.

    Raises:
        ValueError: arrays missing, unexpected or mis-shaped.
    """
    found, used, missing = {}, set(), []
    most = sum(math.prod(entry.shape) for entry in weights.entries.values())
    for path, leaf in _named_leaves(config):
        if leaf.size > most:
            raise ValueError(
                f"expected at most {most} numbers in {_keys(path)}, as many as the files have in all, got {leaf.size}; "
                "config.json belongs to another model"
            )
        rule, names = _rule(family, path)
        own = [_present(name, weights) for name in names]
        if config.ends.tied and names == list(family.weights["embedding"].names) and own[0] not in weights.entries:
            own = list(family.weights["head"].names)
        if absent := [name for name, there in zip(names, own, strict=True) if there not in weights.entries]:
            missing += absent
            continue
        zeros = np.broadcast_to(np.zeros((), np.float32), leaf.shape)
        for name, part in zip(own, rule.split(zeros, config), strict=True):
            if weights.entries[name].shape != part.shape:
                raise ValueError(
                    f"weight {name}: expected shape {part.shape}, got {weights.entries[name].shape}; "
                    "config.json belongs to another model"
                )
        used |= set(own)
        found[path] = rule, own
    if missing:
        raise ValueError(f"expected weights that the files do not have: {_some(missing)}")
    tied = {name for name in family.weights["head"].names if config.ends.tied}
    if extra := [name for name in weights.entries if name not in used | tied and not IGNORED.search(name)]:
        raise ValueError(f"the files have weights that config.json does not ask for: {_some(extra)}")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(
    config: DecoderConfig,
    sources: dict[tuple, tuple[Any, list[str]]],
    weights: Weights,
    mesh: Mesh | None,
    dtype: Any,
    int8: bool,
    progress: bool,
) -> Params:
    like = like_params(with_repeated_heads(config, mesh), dtype, int8)
    homes = leaf_shardings(partition(like), like, mesh)

    def leaf(path: tuple, home: Any) -> Any:
        rule, names = sources[path]
        rounded = int8 and is_quantized(path)
        kind = jnp.float32 if rounded else leaf_dtype(path, dtype)
        array = rule.join([_cast(weights[name], kind, name) for name in names], config)
        array = repeat_heads(path, array, config, mesh)
        return jax.device_put(quantized_matrix(array) if rounded else array, home)

    pairs = jax.tree_util.tree_leaves_with_path(homes, is_leaf=_is_int8)
    leaves = [leaf(path, home) for path, home in tqdm(pairs, "load", disable=not progress, unit="array")]
    return jax.tree.unflatten(jax.tree.structure(homes, is_leaf=_is_int8), leaves)


def _cast(array: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """The array in another dtype; float16 ends at 65,504, where bfloat16 and float32 go on."""
    with np.errstate(over="ignore"):
        found = array.astype(dtype, copy=False)
    if found.dtype == np.float16 != array.dtype and not np.isfinite(found).all():
        raise ValueError(f"weight {name}: expected numbers within float16, got larger ones; load it as bfloat16")
    return found


def like_params(config: DecoderConfig, dtype: Any, int8: bool = False) -> Params:
    """Shapes and dtypes of the parameters as they are kept."""

    def build() -> Params:
        params = init_params(config, jax.random.key(0))
        params = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.astype(leaf_dtype(path, dtype)), params)
        return quantized(params) if int8 else params

    return jax.eval_shape(build)


def _is_int8(node: Any) -> bool:
    return isinstance(node, Int8)


def leaf_dtype(path: tuple, dtype: Any) -> Any:
    """Norms stay float32; everything else is of ``dtype``."""
    return jnp.float32 if any("norm" in str(getattr(step, "key", "")) for step in path) else dtype


def parameter_bytes(config: DecoderConfig, dtype: Any, int8: bool = False) -> int:
    """Bytes of the parameters."""
    size = lambda path: 1 if int8 and is_quantized(path) else jnp.dtype(leaf_dtype(path, dtype)).itemsize  # noqa: E731
    return sum(int(np.prod(leaf.shape)) * size(path) for path, leaf in _named_leaves(config))


def check_memory(config: DecoderConfig, dtype: Any, mesh: Mesh | None, int8: bool = False) -> None:
    """Estimates the memory of the parameters before they are read.

    Raises:
        MemoryError: more than is free.
    """
    devices = _devices(mesh)
    needed = parameter_bytes(config, dtype, int8) * HEADROOM / axis_size(mesh, MODEL_AXIS)
    free = _free(devices)
    if free is not None and needed > free:
        raise MemoryError(
            f"expected {needed / 1e9:.2f} GB free on each of {len(devices)} devices for the parameters, got "
            f"{free / 1e9:.2f} GB; load with int8=True, a shorter dtype, or over more devices"
        )


def _devices(mesh: Mesh | None) -> list[jax.Device]:
    return [jax.local_devices()[0]] if mesh is None else list(mesh.devices.flat)


def _free(devices: list[jax.Device]) -> float | None:
    """Free bytes on the fullest of the devices; host devices share the machine's memory."""
    if devices[0].platform == "cpu":
        lines = MEMORY.read_text().splitlines() if MEMORY.is_file() else []
        kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        return 1024 * kilobytes[0] / len(devices) if kilobytes else None
    stats = [device.memory_stats() for device in devices]
    return min((s["bytes_limit"] - s["bytes_in_use"] for s in stats if s), default=None)


def save_huggingface(
    model: Model,
    path: str | Path,
    *,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
    like: str | Path | None = None,
) -> None:
    """Writes a model so that ``transformers`` loads it: config.json, safetensors, and the tokenizer it has.

    A scale of embedded tokens that no family knows is multiplied into an embedding with a head of its own.

    Args:
        model: network and parameters; eight-bit weights are written as floats.
        path: folder, made if need be.
        dtype: of the matrices; default: as they are.
        shard_bytes: largest file.
        like: folder whose generation_config.json is carried along, and of whose config.json what the network does not
            say (longest text, special tokens); default: the one that the model's tokenizer came from.

    Raises:
        ValueError: no family can say the configuration, or a dtype that holds no weights.
    """
    model = unfitted(model)
    if model.network.streams is not None:
        raise ValueError(
            "expected a plain model, got one with streams, which no family has; pass models.streams.limited(model, 0)"
        )
    dtype = None if dtype is None else float_dtype(dtype)
    config, params = _sayable(model.network.config, model.params)
    family, folder = family_for(config), Path(path)
    files = carried(model, like)
    kept, generation = (read_json(files[name]) if name in files else {} for name in (CONFIG, GENERATION))
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _written(family, config, params, dtype)
    write(folder, arrays, shard_bytes)
    if model.text is not None:
        model.text.write(folder)
    own = jnp.dtype(params["embedding"].dtype if dtype is None else dtype).name
    about = {"eos_token_id": None} | {name: kept[name] for name in KEPT if name in kept} | {"dtype": own}
    if model.text is not None and list(model.text.stop) != _ends(generation, kept):
        about["eos_token_id"] = list(model.text.stop) or None
        generation |= {"eos_token_id": about["eos_token_id"]} if generation else {}
    (folder / CONFIG).write_text(json.dumps(about | family.config_json(config), indent=1) + "\n")
    if generation:
        (folder / GENERATION).write_text(json.dumps(generation, indent=1) + "\n")


def carried(model: Model, like: str | Path | None) -> dict[str, Path]:
    """Where the config.json and generation_config.json that a model came with lie, as far as there are any."""
    if like is not None:
        return {name: Path(like) / name for name in (CONFIG, GENERATION) if (Path(like) / name).is_file()}
    files = model.text.files if model.text else {}
    return {name: files[name] for name in (CONFIG, GENERATION) if name in files and files[name].is_file()}


def _ends(generation: dict[str, Any], config: dict[str, Any]) -> list[int]:
    """Tokens that end a sequence, as published files say it."""
    found = generation.get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    return [] if found is None else found if isinstance(found, list) else [found]


def _sayable(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """The same function as a configuration that a family can say."""
    scale = config.ends.embedding_scale
    if any(family.carries(config) for family in FAMILIES):
        return config, params
    scale = config.width**0.5 if scale is None else scale
    head = params.get("head", params["embedding"])
    table = np.asarray(params["embedding"], np.float32) * np.float32(scale)
    ends = replace(config.ends, tied=False, embedding_scale=1.0)
    return replace(config, ends=ends), {**params, "embedding": table.astype(params["embedding"].dtype), "head": head}


def _written(family: Family, config: DecoderConfig, params: Params, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    whole = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_int8)
    for path, leaf in whole:
        rule, names = _rule(family, path)
        wide = _plain(leaf)
        own = params["embedding"].dtype if isinstance(leaf, Int8) else wide.dtype
        kind = leaf_dtype(path, own if dtype is None else dtype)
        yield from zip(names, (part.astype(kind) for part in rule.split(wide, config)), strict=True)


def _plain(leaf: Any) -> np.ndarray:
    if isinstance(leaf, Int8):
        return np.asarray(leaf.values, np.float32) * np.asarray(leaf.scale, np.float32)[..., None]
    return np.asarray(leaf)
