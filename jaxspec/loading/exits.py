"""Trained exit heads of a target in one file, ``lens.safetensors``: written, and read with shapes checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxspec.core.files import reading
from jaxspec.loading._weights import LENS
from jaxspec.models.base import Model
from jaxspec.verify.exits import FrequentLens

#: Key of the file's metadata.
ABOUT = "jaxspec.exits"


class Exit(NamedTuple):
    """A trained exit head.

    Attributes:
        layer: ℓₑ that it reads, to be passed as ``exit_layer``.
        head: to be passed as ``exit``.
        figures: measured when it was trained, by name.
    """

    layer: int
    head: FrequentLens
    figures: Mapping[str, Any] = {}  # noqa: RUF012  not changed


def save_exits(exits: list[Exit], folder: str | Path) -> Path:
    """Write exits of one target, the one to use by default first; return the file, ``folder``/lens.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{exit.layer}.{name}": np.asarray(leaf) for exit in exits for name, leaf in exit.head._asdict().items()}
    about = [{"layer": exit.layer, "figures": dict(exit.figures)} for exit in exits]
    partial = folder / f"{LENS}.partial"
    save_file(arrays, partial, metadata={ABOUT: json.dumps(about)})
    return partial.replace(folder / LENS)


def load_exits(path: str | Path, target: Model | None = None) -> list[Exit]:
    """Read all exits of a file of ``save_exits``, the one to use by default first; they compute in float32.

    Args:
        path: the file, or its folder.
        target: checked to have such a width and vocabulary.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or exits of another target.
    """
    file = _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected exits written by jaxspec train lens, got no such file")
    with reading(file, f"exits written by jaxspec train lens ({LENS})"), safe_open(file, "numpy") as opened:
        about = json.loads((opened.metadata() or {})[ABOUT])
        exits = [_exit(opened, row) for row in about]
    if not exits:
        raise ValueError(f"{file}: expected at least one exit, got none; train it again")
    for exit in exits if target is not None else []:
        _check_fits(file, exit, target)  # type: ignore[arg-type]
    return exits


def load_exit(path: str | Path, target: Model | None = None, layer: int | None = None) -> Exit:
    """Read one exit head that ``jaxspec train lens`` wrote, for ``jaxspec.mirror``.

    ``mirror(target, draft, exit=exit.head, exit_layer=exit.layer)``

    Args:
        path: ``lens.safetensors``, or its folder.
        target: checked to have such a width and vocabulary.
        layer: ℓₑ; default: the first one that was trained.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, exits of another target, or none at this layer.
    """
    exits = load_exits(path, target)
    return exits[0] if layer is None else exit_at(exits, layer, str(path))


def exit_at(exits: list[Exit], layer: int, where: str) -> Exit:
    """Return the exit at a layer.

    Raises:
        ValueError: there is none.
    """
    found = [exit for exit in exits if exit.layer == layer]
    if not found:
        layers = ", ".join(str(exit.layer) for exit in exits)
        raise ValueError(f"{where}: expected an exit_layer of {layers}, whose exits are trained, got {layer}")
    return found[0]


def has_exits(path: str | Path) -> bool:
    """Return whether a path is a file of trained exits by its name, or a folder with one; nothing is read."""
    file = _file(path)
    return file.name == LENS and file.is_file()


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / LENS if path.is_dir() else path


def _exit(opened: Any, about: Mapping[str, Any]) -> Exit:
    layer = int(about["layer"])
    arrays = {name: jnp.asarray(opened.get_tensor(f"{layer}.{name}")) for name in FrequentLens._fields}
    head = FrequentLens(**arrays)
    (count, _), (rank, width) = head.head.shape, head.down.shape
    shapes = (head.tokens.shape, head.bias.shape, head.up.shape)
    if shapes != ((count,), (rank,), (width, rank)):
        raise ValueError(f"expected arrays of one exit, got shapes {', '.join(map(str, shapes))}; train it again")
    return Exit(layer, head, dict(about["figures"]))


def _check_fits(file: Path, exit: Exit, target: Model) -> None:
    config, head = target.network.config, exit.head
    features = config.ends.embedding_size or config.width
    ids = np.asarray(head.tokens)
    ascending = ids.dtype == np.int32 and ids[0] >= 0 and bool(np.all(np.diff(ids) > 0))
    sizes = head.down.shape[1], head.head.shape[1]
    if not ascending or sizes != (config.width, features) or ids[-1] >= config.vocab_size:
        raise ValueError(
            f"{file}: expected exits of this target, of width {config.width}, {features} features before its head and "
            f"{config.vocab_size} tokens, got width {sizes[0]}, {sizes[1]} features and tokens up to {ids[-1]}; "
            "run jaxspec train lens for it"
        )
    if not 1 <= exit.layer <= config.num_layers:
        raise ValueError(f"{file}: expected an exit layer up to {config.num_layers}, got {exit.layer}")
