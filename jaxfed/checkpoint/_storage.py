"""Steps written in the background and read back; the only module here that calls orbax."""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxfed.checkpoint._errors import CheckpointError, MismatchError, PathLike, explaining
from jaxfed.checkpoint._leaves import Leaf, Tree, encode, match, take_part
from jaxfed.checkpoint.record import (
    MANIFEST,
    SCHEMA,
    Manifest,
    check_files,
    complete,
    delete,
    digests,
    folder_of,
    half_written,
    naming_last_good,
    read_manifest,
    steps,
    sync,
    write_manifest,
)

_ARRAYS = "arrays"

# Orbax warns at every save without OCDBT. One folder per array is wanted here: `part` then reads only its own files.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in str(record.msg))


def save(
    directory: PathLike, step: int, tree: Tree, *, metadata: Any = None, kind: str = "tree", keep: int | None = None
) -> Path:
    """Save `tree` as `step`, wait until it is on disk and return its folder; arguments and errors as of `Writer`."""
    with Writer(directory, kind=kind, keep=keep) as writer:
        return writer.save(step, tree, metadata)


class Writer:
    """Save steps below `directory` in the background; a context manager that waits for the last one at its end.

    Leaves may be JAX and NumPy arrays and scalars, typed PRNG keys, bool, int, float, str and None, in any pytree.
    Half-written steps older than the newest complete one were left by killed processes: the next save deletes them.
    With several processes, all make the same calls on one shared directory; process 0 leads.

    Args:
        directory: of the steps; created if missing, and locked against other writers.
        kind: a name for what is saved, kept in the manifest.
        keep: number of complete steps to keep; older ones are deleted once a newer one is complete. None keeps all.

    Raises:
        CheckpointError: other leaves, a directory that cannot be written or has another writer, or a step that
            is complete already; what fails in the background is raised by the next `save`, `wait` or `close`.
    """

    def __init__(self, directory: PathLike, *, kind: str = "tree", keep: int | None = 3) -> None:
        if keep is not None and keep < 1:
            raise CheckpointError(f"expected keep >= 1 or None, got {keep}; None keeps every step")
        self._directory, self._kind, self._keep = Path(directory).absolute(), kind, keep
        with explaining(f"expected a directory that can be written at {directory}", "choose or create another"):
            self._directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self._directory, os.W_OK):
                raise PermissionError("a read-only file system, or no right to write there")
        self._leads = jax.process_index() == 0
        self._unlock: Callable[[], object] = lambda: None
        if self._leads:
            self._unlock = weakref.finalize(self, os.close, _locked(self._directory))
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tree: Tree, metadata: Any = None) -> Path:
        """Start to save `tree`; return the step's folder as soon as the arrays may be donated or overwritten.

        Args:
            step: an integer ≥ 0 that is not complete.
            tree: a pytree.
            metadata: any JSON value; `manifest` returns it.
        """
        self.wait()
        folder = folder_of(self._directory, step)
        if self._leads and (folder / MANIFEST).exists():
            raise CheckpointError(f"expected a new step, got {step}, which is complete; use another or delete {folder}")
        leaves, arrays = encode(tree)
        with explaining("expected metadata that JSON can hold", "convert it, or save it as a leaf"):
            made = Manifest(SCHEMA, self._kind, int(folder.name), json.loads(json.dumps(metadata)), leaves, {})
        with explaining(f"expected to save {folder}", "free space or set permissions, then save again"):
            if self._leads:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            if arrays:
                self._orbax.save(folder / _ARRAYS, args=ocp.args.PyTreeSave(arrays))
            self._pending = self._thread.submit(self._commit, folder, made)
        return folder

    def _commit(self, folder: Path, made: Manifest) -> None:
        self._orbax.wait_until_finished()
        if not self._leads:
            return
        for path in [folder, *folder.rglob("*")]:
            sync(path)
        write_manifest(folder, dataclasses.replace(made, files=digests(folder)))
        self._tidy(made.step)

    def _tidy(self, saved: int) -> None:
        """Delete steps beyond `keep` up to the one just saved, and what killed processes left half-written."""
        done = steps(self._directory)
        old = [] if self._keep is None else [step for step in done if step <= saved][: -self._keep]
        for step in [*old, *(step for step in half_written(self._directory) if step < done[-1])]:
            delete(folder_of(self._directory, step))

    def wait(self) -> None:
        """Wait until the last save is on disk; raise its error, once."""
        if self._pending is not None:
            error, self._pending = self._pending.exception(), None
            with self._completing():
                if error is not None:
                    raise error

    def close(self) -> None:
        """Wait as `wait` does and release the threads; the writer saves nothing afterwards."""
        with ExitStack() as ends:
            ends.callback(self._unlock)
            ends.callback(self._release)
            ends.callback(self._thread.shutdown)
            self.wait()
            multihost_utils.sync_global_devices("the last step is complete")

    def _release(self) -> None:
        with self._completing():
            self._orbax.close()

    def _completing(self) -> AbstractContextManager[None]:
        remedy = f"free space or set permissions in {self._directory}, then save again"
        return explaining("expected to complete the last save", remedy)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _locked(directory: Path) -> int:
    """Return a descriptor of the directory, locked against other writers until it is closed or its process ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(
            f"expected {directory} without a writer, got one at work; close it, stop its process, or choose another"
        ) from error
    except OSError:
        pass  # network file systems may not support locks
    return descriptor


def load(
    directory: PathLike, like: Tree = None, step: int | None = None, shardings: Tree = None, part: str | None = None
) -> Tree:
    """Return the tree saved as `step` (None: the newest complete one), after verifying it.

    Args:
        directory: of the steps.
        like: a pytree of arrays, jax.ShapeDtypeStruct, …: its structure, shapes and dtypes must be those saved; its
            leaves determine what is returned (NumPy or JAX, and the devices where committed). Containers are compared
            by the names and positions of their leaves. None: everything as it was saved, in nested dicts and lists.
        step: a complete step.
        shardings: a sharding, or a pytree of them (a prefix of `like`), for the JAX arrays.
        part: name of a subtree, as "params" or "params.layers.0": only its files are read, and `like` describes it
            alone.

    Raises:
        MismatchError: names every difference between the step and `like`.
        DamagedError: names every bad file, and the last good step; an older step is never loaded instead.
        CheckpointError: there is no such complete step.
    """
    with naming_last_good(directory, step):
        folder = complete(directory, step)
        manifest = read_manifest(folder)
        with _in(folder):
            leaves = take_part(manifest.tree, part)
            pairs, treedef = match(leaves, like)
        check_files(folder, manifest, {leaf.array for leaf in manifest.tree} - {leaf.array for leaf in leaves})
    with explaining("expected shardings that fit the tree and its arrays", "pass one sharding for all, or others"):
        each = _shardings(pairs, treedef, shardings)
        return treedef.unflatten(_restore(folder / _ARRAYS, pairs, each))


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    try:
        yield
    except MismatchError as error:
        raise MismatchError(f"{folder}: {error}") from error


def _shardings(pairs: Sequence[tuple[Leaf, Any]], treedef: Any, requested: Tree) -> list[Any]:
    """Return for every leaf its `requested` sharding, else the one of its committed leaf of `like`, else None."""
    shardings = [getattr(x, "sharding", None) if getattr(x, "committed", True) else None for _, x in pairs]
    if requested is not None:
        tree = treedef.unflatten([target if leaf.form == "empty" else 0 for leaf, target in pairs])
        chosen = iter(jax.tree.leaves(jax.tree.broadcast(requested, tree)))
        shardings = [None if leaf.form == "empty" else next(chosen) for leaf, _ in pairs]
    for (leaf, _), sharding in zip(pairs, shardings, strict=True):
        if sharding is not None and leaf.form in ("jax", "key"):
            sharding.shard_shape(leaf.shape)
    return shardings


def _restore(folder: Path, pairs: Sequence[tuple[Leaf, Any]], shardings: Sequence[Any]) -> list[Any]:
    rows = [(leaf, target, sharding) for (leaf, target), sharding in zip(pairs, shardings, strict=True)]
    host = ocp.RestoreArgs(restore_type=np.ndarray)
    requests = {
        leaf.array: host if sharding is None or leaf.form != "jax" else ocp.ArrayRestoreArgs(sharding=sharding)
        for leaf, _, sharding in rows
        if leaf.array is not None
    }
    stored = {}
    if requests:
        wanted = ocp.args.PyTreeRestore(dict.fromkeys(requests, 0), restore_args=requests, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as reader:
            stored = reader.restore(folder, args=wanted)
    return [_decode(leaf, target, stored.get(leaf.array), sharding) for leaf, target, sharding in rows]


def _decode(leaf: Leaf, target: Any, stored: Any, sharding: Any) -> Any:
    """Build one leaf; values, empty containers and arrays of size zero have no file."""
    if leaf.shape is None:
        return target if leaf.form == "empty" else leaf.value
    if leaf.form == "key" and stored is None:
        stored = jax.random.split(jax.random.key(0, impl=leaf.value), leaf.shape)
    elif leaf.form == "key":
        stored = jax.random.wrap_key_data(stored, impl=leaf.value)
    elif stored is None:
        stored = np.zeros(leaf.shape, np.dtype(leaf.dtype))
    if leaf.form in ("numpy", "scalar"):
        return stored if leaf.form == "numpy" else stored[()]
    return jnp.array(stored) if sharding is None else jax.device_put(stored, sharding)
