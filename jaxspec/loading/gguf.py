"""GGUF files, llama.cpp's format: read onto a mesh, or converted into the folder of a published checkpoint."""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from tqdm import tqdm

from jaxspec.core.files import reading
from jaxspec.loading._gguf_architectures import architecture_of
from jaxspec.loading._gguf_config import ROPE_FACTORS, config_of, names_of, undo_of
from jaxspec.loading._gguf_file import GgufFile, GgufWeights
from jaxspec.loading._gguf_tokenizer import text_of
from jaxspec.loading._rope import Config
from jaxspec.loading._weights import write
from jaxspec.loading.huggingface import CONFIG, read_published
from jaxspec.models.base import Model
from jaxspec.text import Text

SUFFIX = ".gguf"


def load_gguf(
    path: str | Path, mesh: Mesh | None = None, dtype: Any = None, *, int8: bool = False, progress: bool = False
) -> Model:
    """Read a GGUF file, each array dequantised and sent straight to its devices.

    Args:
        path: of the file.
        mesh: of the parameters, tensor-parallel over its ``model`` axis; default: the first device.
        dtype: of the matrices; default: float32.
        int8: keep the layers' matrices in eight bits with a scale for every output feature.
        progress: show a progress bar.

    Returns:
        A ``Model`` with its ``text``: tokenizer, chat template, stop tokens.

    Raises:
        ValueError: a damaged file, or an architecture, quantisation, tokenizer or setting that is not read (named).
        ModuleNotFoundError: the gguf library is not installed.
        MemoryError: the parameters do not fit.
    """
    config, weights, text = _opened(path)
    return read_published(Path(path), config, weights, text, mesh, dtype, int8=int8, progress=progress)


def convert_gguf(path: str | Path, out: str | Path, *, progress: bool = False) -> None:
    """Write the folder of a published checkpoint, which ``load_huggingface`` and ``transformers`` read.

    Quantised arrays are written as float32, with the values that llama.cpp computes with; one is in memory at a time.

    Args:
        path: of the file.
        out: folder, made if it does not exist.
        progress: show a progress bar.

    Raises:
        ValueError: as ``load_gguf``.
        ModuleNotFoundError: the gguf library is not installed.
    """
    (config, weights, text), folder = _opened(path), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    text.write(folder)
    names = tqdm(weights.entries, "convert", disable=not progress, unit="array")
    write(folder, ((name, weights[name]) for name in names))
    ends = {"eos_token_id": list(text.stop)} if text.stop else {}
    (folder / CONFIG).write_text(json.dumps(config | ends, indent=1) + "\n")
    if ends:
        (folder / "generation_config.json").write_text(json.dumps(ends, indent=1) + "\n")


def _opened(path: str | Path) -> tuple[Config, GgufWeights, Text]:
    """Return a file's configuration, arrays by published name, and text."""
    file = GgufFile(path)
    with reading(path, "metadata of a language model"):
        config = config_of(file)
        undo = undo_of(architecture_of(file), config)
        return config, GgufWeights(file, names_of(file, config), undo, (ROPE_FACTORS,)), text_of(file)
