"""Models in the checkpoint layer, loadable onto any mesh; and one function that opens every supported format."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from jaxfed import checkpoint
from jaxspec.core.files import reading
from jaxspec.devices.sharding import DeviceOrSharding, check_shardable, leaf_shardings
from jaxspec.drafts import streams
from jaxspec.loading._saving import original_files, save_huggingface
from jaxspec.loading.gguf import SUFFIX, convert_gguf, load_gguf
from jaxspec.loading.hub import folder_of
from jaxspec.loading.huggingface import load_huggingface, published_dtype
from jaxspec.loading.llama2c import load_llama2c
from jaxspec.loading.parameters import check_memory, float_dtype, leaf_dtype, like_params
from jaxspec.models import network
from jaxspec.models.base import Model
from jaxspec.models.config import DecoderConfig, build
from jaxspec.models.dtypes import hidden_like
from jaxspec.models.quantize import is_int8, quantized
from jaxspec.models.vocabulary import unfitted
from jaxspec.text import Text

KIND = "model"
#: Folder next to the steps with the tokenizer's files, config.json and generation_config.json.
TEXT = "text"


def save_model(model: Model, directory: str | Path, *, like: str | Path | None = None) -> None:
    """Save a model as the next step of a checkpoint directory, with its tokenizer's files next to it.

    Args:
        model: network, parameters, text.
        directory: of the checkpoint.
        like: folder whose config.json and generation_config.json are copied, for a later ``save_huggingface``;
            default: the folder that the model's tokenizer came from.
    """
    directory, model = Path(directory), unfitted(model)
    int8 = any(map(is_int8, jax.tree.leaves(model.params, is_leaf=is_int8)))
    about = {
        "config": asdict(model.network.config),
        "dtype": hidden_like(model).dtype.name,
        "int8": int8,
        "stop": list(model.text.stop) if model.text else [],
        "streams": streams.describe(model),
    }
    step = -1 if (last := checkpoint.latest(directory)) is None else last
    checkpoint.save(directory, step + 1, {"params": model.params}, kind=KIND, metadata=about)
    files = original_files(model, like)
    if model.text is not None or files:
        (directory / TEXT).mkdir(exist_ok=True)
    if model.text is not None:
        model.text.write(directory / TEXT)
    for name, file in files.items():
        if file.resolve() != (directory / TEXT / name).resolve():
            shutil.copyfile(file, directory / TEXT / name)


def load_model(directory: str | Path, mesh: Mesh | None = None) -> Model:
    """Load a model of ``save_model`` straight onto a mesh.

    Raises:
        ValueError: a checkpoint of another kind, an invalid configuration, or a mesh that does not divide the heads.
        jaxfed.checkpoint.CheckpointError: no complete step, or a damaged file (named).
        MemoryError: the parameters do not fit.
    """
    directory, manifest = Path(directory), checkpoint.manifest(directory)
    if manifest.kind != KIND:
        raise ValueError(f"{directory}: expected a checkpoint of kind {KIND!r}, got {manifest.kind!r}")
    with reading(directory, "the metadata of save_model"):
        about, most = manifest.metadata, len(manifest.tree)
        config, dtype, int8 = build(DecoderConfig, about["config"]), jnp.dtype(about["dtype"]), bool(about["int8"])
        if config.num_layers > most:
            raise ValueError(f"expected at most {most} layers, the number of leaves, got {config.num_layers}")
        net, like, stop = network(config), like_params(config, dtype, int8), [int(token) for token in about["stop"]]
        if about.get("streams"):
            net, like = streams.like(net, like, **about["streams"])
    check_shardable(config, mesh)
    check_memory(config, dtype, mesh, int8)
    shardings = jax.tree.map(_sharding, leaf_shardings(net.partition(like), like, mesh))
    params = checkpoint.load(directory, like={"params": like}, shardings={"params": shardings})["params"]
    text = Text.read(directory / TEXT) if (directory / TEXT).is_dir() else None
    if text is not None or stop:
        text = (text or Text()).stopping(stop)
    return Model(net, params, text)


def _sharding(where: DeviceOrSharding) -> Sharding:
    return where if isinstance(where, Sharding) else SingleDeviceSharding(where)


def open_model(path: str | Path, mesh: Mesh | None = None, dtype: Any = None, *, int8: bool = False) -> Model:
    """Open a published checkpoint, a directory of ``save_model``, a GGUF file, or a llama2.c file beside its tokenizer.

    Args:
        path: folder with ``config.json``, or its name on the hub; checkpoint directory; ``.gguf`` file; or ``.bin``
            file (tokenizer: the one ``.model`` there).
        mesh: of the parameters.
        dtype: of the matrices; default: see ``load_huggingface``, and the stored one in the other formats.
        int8: keep the layers' matrices in eight bits.

    Raises:
        ValueError: a path of another format.
    """
    dtype = None if dtype is None else float_dtype(dtype)
    path = folder_of(path)
    if (path / "config.json").is_file():
        return load_huggingface(path, mesh, dtype, int8=int8)
    if path.is_dir() and checkpoint.latest(path) is not None:
        return changed(load_model(path, mesh), dtype, int8)
    if path.is_file() and path.suffix == SUFFIX:
        return load_gguf(path, mesh, dtype, int8=int8)
    if path.is_file() and path.suffix == ".bin":
        tokenizers = sorted(path.parent.glob("*.model"))
        return changed(load_llama2c(path, tokenizers[0] if len(tokenizers) == 1 else None), dtype, int8)
    raise ValueError(
        f"{path}: expected a folder with config.json, a checkpoint directory that jaxspec convert wrote, a .gguf "
        "file, or a llama2.c .bin file, got none of them"
    )


def changed(model: Model, dtype: Any, int8: bool = False) -> Model:
    """Return the model with parameters of another dtype (None: unchanged), with ``int8`` its matrices in eight bits."""
    params = model.params
    if dtype is not None:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if is_int8(leaf) else leaf.astype(leaf_dtype(path, dtype)),
            params,
            is_leaf=is_int8,
        )
    return model._replace(params=quantized(params) if int8 else params)


def convert(source: str | Path, out: str | Path) -> str:
    """Convert a published checkpoint or llama2.c file to a checkpoint directory; that, or GGUF, to a published one.

    Returns:
        The format that was written: "checkpoint" or "huggingface".

    Raises:
        ValueError: ``out`` is not empty, or ``source`` has a format that ``open_model`` does not read.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or empty folder to write to, got one that is not empty")
    if source.is_file() and source.suffix == SUFFIX:
        convert_gguf(source, out)
        return "huggingface"
    published = (source / "config.json").is_file()
    ours = source.is_dir() and not published
    model = open_model(source, dtype=published_dtype(source) if published else None)
    if ours:
        save_huggingface(model, out, like=source / TEXT if (source / TEXT).is_dir() else None)
    else:
        save_model(model, out, like=source if published else None)
    return "huggingface" if ours else "checkpoint"
