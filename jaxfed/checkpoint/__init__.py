"""Checkpoints of pytrees: atomic, asynchronous, verified before they are read; orbax writes the arrays.

One step is one folder:

    <directory>/00000012/arrays/…         orbax, one folder per array
    <directory>/00000012/manifest.json    written last: every leaf, size and SHA-256 of every other file

A folder without a manifest is half-written: never listed, never loaded, replaced by a new save of that step. `load`
compares names, shapes and dtypes with the manifest, then the files with their digests, and only then calls orbax,
which on its own would load flipped bits without an error. Nothing is pickled. Several processes save their parts of
arrays together; process 0 writes the manifest.
"""

from jaxfed.checkpoint._errors import CheckpointError, DamagedError, MismatchError
from jaxfed.checkpoint._leaves import Leaf
from jaxfed.checkpoint._storage import Writer, load, save
from jaxfed.checkpoint.record import SCHEMA, Manifest, latest, manifest, steps, verify

__all__ = [
    "SCHEMA",
    "CheckpointError",
    "DamagedError",
    "Leaf",
    "Manifest",
    "MismatchError",
    "Writer",
    "latest",
    "load",
    "manifest",
    "save",
    "steps",
    "verify",
]
