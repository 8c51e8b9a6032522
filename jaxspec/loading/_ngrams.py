"""Tables of n-grams as drafts, in a format of our own: the settings in config.json, the table in safetensors."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.core.files import read_json
from jaxspec.drafts import Draft
from jaxspec.drafts.table import TableDrafter
from jaxspec.loading._draft_files import CONFIG, DraftFiles
from jaxspec.loading._weights import write
from jaxspec.models.base import Model

#: ``model_type`` in config.json.
KIND = "ngram_table"
#: The arrays [S, 8] of ``ngram_table``, and their types.
ARRAYS = {"keys": np.uint32, "tokens": np.int32, "shares": np.float32}


def is_table(folder: Path) -> bool:
    """Return whether a folder holds a table of n-grams."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == KIND


def write_table(draft: Draft, folder: Path) -> None:
    """Write a table of n-grams."""
    drafter: Any = draft.drafter
    config = {"model_type": KIND, "vocab_size": drafter.vocab_size, "counted": drafter.counted}
    config |= {"repeated": drafter.sizes, "least": drafter.least}
    folder.mkdir(parents=True, exist_ok=True)
    arrays = ((name, np.asarray(draft.params[name])) for name in ARRAYS)
    write(folder, ((name, array.view(np.int32) if name == "keys" else array) for name, array in arrays))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def read_table(folder: Path, target: Model) -> Draft:
    """Read a table of n-grams for a target.

    Raises:
        ValueError: a missing setting or array, shapes that differ or are no power of two, another vocabulary.
    """
    files = DraftFiles(folder)
    config = files.config
    if missing := [name for name in ("vocab_size", "counted", "repeated", "least") if name not in config]:
        raise ValueError(f"{folder}: expected {', '.join(missing)} in {CONFIG}, got none; write it with save_draft")
    shapes = {files.shape(name) for name in ARRAYS}
    rows = max(shapes)[0]
    if len(shapes) > 1 or rows & (rows - 1):
        raise ValueError(f"{folder}: expected keys, tokens and shares of one shape [2^n, 8], got {sorted(shapes)}")
    arrays = {name: np.ascontiguousarray(files[name]) for name in ARRAYS}
    files.check_all_used("")
    sizes, counted = (tuple(config[name]) for name in ("repeated", "counted"))
    drafter = TableDrafter(sizes, config["vocab_size"], counted, float(config["least"]))
    return Draft(
        drafter.for_target(target.network),
        {name: jnp.asarray(arrays[name].view(kind)) for name, kind in ARRAYS.items()},
        target.text,
    )
