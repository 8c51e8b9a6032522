"""Embedded pairs: target, draft, exit and tokenizer stored inside the package; no download."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from safetensors import flax as safetensors
from safetensors import safe_open
from tokenizers import Tokenizer

from jaxspec.core.files import read_json, reading
from jaxspec.drafts import Draft, streams
from jaxspec.loading import load_draft, save_draft
from jaxspec.models import init_params, network
from jaxspec.models.base import Model, Params
from jaxspec.models.config import DecoderConfig, build
from jaxspec.text import Text
from jaxspec.verify.exits import AffineLens, LogitLens

PAIRS = ("shakespeare",)
"""Names that ``load`` accepts."""
STREAMS = "streams.safetensors"
"""File of a pair's folder with lookahead streams, if the pair has any."""
DRAFTS = "drafts"
"""Folder of a pair's folder with drafts that read hidden states, if the pair has any."""


class Pair(NamedTuple):
    """A target with its draft, exit head, exit layer and the shared tokenizer.

    Attributes:
        target: verifies.
        draft: drafts.
        exit: head on the hidden states after ``exit_layer``.
        exit_layer: layers in the prefix ℓₑ.
        tokenizer: of both models.
        figures: measured when the pair was trained, by name.
        streaming: the draft with lookahead streams, if any were trained (``drafts.streams``).
        drafts: drafts that read hidden states of the target, by name; each is loaded when it is first asked for.
    """

    target: Model
    draft: Model
    exit: LogitLens | AffineLens
    exit_layer: int
    tokenizer: Tokenizer
    figures: dict[str, Any]
    streaming: Model | None = None
    drafts: Mapping[str, Draft] = MappingProxyType({})


class StoredDrafts(Mapping[str, Draft]):
    """Drafts in folders, by name, each loaded when it is first asked for."""

    def __init__(self, folders: Mapping[str, Path], target: Model):
        self._folders, self._target, self._loaded = folders, target, dict[str, Draft]()

    def __getitem__(self, name: str) -> Draft:
        """Return one draft, in the target's dtype."""
        if name not in self._folders:
            raise KeyError(f"expected one of {', '.join(self._folders) or 'no drafts'}, got {name!r}")
        if name not in self._loaded:
            self._loaded[name] = load_draft(self._folders[name], self._target, report=lambda line: None)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._folders)

    def __len__(self) -> int:
        """Return the number of drafts."""
        return len(self._folders)


def load(name_or_path: str | Path = "shakespeare") -> Pair:
    """Load an embedded pair by name, or one written by ``save`` by path; float32 on the default device.

    Raises:
        ValueError: an unknown name, a damaged file, or weights that do not match the configuration (named).
    """
    folder = _folder(name_or_path)
    if not (folder / "pair.json").is_file():
        raise ValueError(f"expected one of {PAIRS} or a folder written by save, got {str(name_or_path)!r}")
    with reading(str(folder), "a pair written by save"):
        return _load(folder)


def _folder(name_or_path: str | Path) -> Any:
    return resources.files("jaxspec.zoo") / str(name_or_path) if name_or_path in PAIRS else Path(name_or_path)


def draft_folders(name_or_path: str | Path) -> dict[str, Path]:
    """Return the folders of a pair's drafts that read hidden states, by name; nothing is loaded."""
    return _subfolders(_folder(name_or_path) / DRAFTS)


def _subfolders(folder: Any) -> dict[str, Path]:
    own = Path(str(folder))
    return {path.name: path for path in sorted(own.iterdir()) if path.is_dir()} if own.is_dir() else {}


def _load(folder: Any) -> Pair:
    about = read_json(folder / "pair.json")
    with resources.as_file(folder / "pair.safetensors") as path, reading(path, "a readable safetensors file"):
        weights = safetensors.load_file(path)
    _check_layers(about, len(weights))
    models = {name: _model(build(DecoderConfig, about[name]), name, weights) for name in ("target", "draft")}
    lens = {key.split(".")[1]: jnp.asarray(value, jnp.float32) for key, value in weights.items() if key[:5] == "exit."}
    with reading(folder / "tokenizer.json", "a tokenizer"):
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
    models = {name: model._replace(text=Text.of(tokenizer)) for name, model in models.items()}
    return Pair(
        **models,
        exit=AffineLens(**lens) if lens else LogitLens(),
        exit_layer=about["exit_layer"],
        tokenizer=tokenizer,
        figures=about["figures"],
        streaming=_streaming(models["draft"], folder / STREAMS),
        drafts=StoredDrafts(_subfolders(folder / DRAFTS), models["target"]),
    )


def save(pair: Pair, folder: str | Path) -> None:
    """Write ``pair.safetensors`` (bfloat16), ``pair.json`` and ``tokenizer.json`` into ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trees = {"target": pair.target.params, "draft": pair.draft.params, "exit": pair.exit._asdict()}
    weights = {name: leaf.astype(jnp.bfloat16) for name, leaf in _named(trees)}
    safetensors.save_file(weights, folder / "pair.safetensors")
    configs = {name: asdict(getattr(pair, name).network.config) for name in ("target", "draft")}
    about = {**configs, "exit_layer": pair.exit_layer, "figures": pair.figures}
    (folder / "pair.json").write_text(json.dumps(about, indent=1) + "\n")
    pair.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / STREAMS).unlink(missing_ok=True)
    if pair.streaming is not None:
        save_streams(pair.streaming, folder / STREAMS)
    for name, draft in pair.drafts.items():
        save_draft(draft, folder / DRAFTS / name, dtype="bfloat16")


def save_streams(draft: Model, path: str | Path) -> None:
    """Write only the streams of a streaming draft (bfloat16)."""
    own = {name: leaf.astype(jnp.bfloat16) for name, leaf in draft.params["streams"].items()}
    safetensors.save_file(own, path, {"start": str(streams.describe(draft)["start"])})  # type: ignore[index]


def _streaming(draft: Model, path: Any) -> Model | None:
    if not path.is_file():
        return None
    with resources.as_file(path) as file, reading(file, "the streams of a draft"), safe_open(file, "flax") as opened:
        own = {name: jnp.asarray(opened.get_tensor(name), jnp.float32) for name in opened.keys()}  # noqa: SIM118
        start = int(opened.metadata()["start"])
    streaming = streams.streaming_network(draft.network, len(own["offset"]), start)
    return Model(streaming, {"draft": draft.params, "streams": own}, draft.text)


def _check_layers(about: dict[str, Any], most: int) -> None:
    """Refuse a damaged number of layers before that many layers are made."""
    for name in ("target", "draft"):
        count = about[name]["num_layers"]
        if not 0 < count <= most:
            raise ValueError(f"expected num_layers of the {name} from 1 to {most} (arrays in the file), got {count}")


def _named(tree: Params) -> list[tuple[str, jax.Array]]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in pairs]


def _model(config: DecoderConfig, prefix: str, weights: dict[str, jax.Array]) -> Model:
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = []
    for name, leaf in _named({prefix: shapes}):
        got = weights[name].shape if name in weights else "no such weight"
        if got != leaf.shape:
            raise ValueError(
                f"weight {name}: expected shape {leaf.shape}, got {got}; the file belongs to another configuration"
            )
        leaves.append(jnp.asarray(weights[name], jnp.float32))
    return Model(network(config), jax.tree.unflatten(jax.tree.structure(shapes), leaves))
