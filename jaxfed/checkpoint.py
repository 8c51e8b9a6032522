"""Checkpoints of pytrees: atomic, asynchronous, verified before they are read; orbax holds the arrays.

One step is one folder::

    <directory>/00000012/arrays/…         orbax, one folder per array
    <directory>/00000012/manifest.json    written last: what was saved, size and SHA-256 of every other file

A folder without a manifest is half-written: never listed, never loaded, replaced by a new save of that step. `load`
compares names, shapes and dtypes with the manifest, then the files with their digests, and only then calls orbax,
which alone would load flipped bits in silence. Nothing is pickled. One process, with all its devices, writes.
"""

import dataclasses
import hashlib
import json
import logging
import operator
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import tree_util

SCHEMA = 1
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"

PathLike = str | os.PathLike[str]
Tree = Any
Entries = tuple[str | int, ...]
File = dict[str, int | str]

# Orbax warns at every save without OCDBT. One folder per array is wanted here: `part` then reads only its own files.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in str(record.msg))


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what was expected, what came, and the remedy."""


class MismatchError(CheckpointError):
    """What was asked for (structure, shape, dtype, part) is not what was saved."""


class DamagedError(CheckpointError):
    """A complete step is no longer what was saved; `file` is its first bad file, relative to the step's folder."""

    def __init__(self, message: str, file: str) -> None:
        super().__init__(message)
        self.file = file


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of a saved tree; `str(leaf)` is what is compared, such as "float32[2,3]", "int" or "None".

    path: names and positions from the root.
    form: "jax", "numpy", "scalar" (of NumPy), "key" (typed PRNG key), "value" (of Python) or "empty" (None, (), {}, …).
    dtype, shape: as NumPy and JAX write them; shape is None for values and empties.
    array: its folder below `arrays/`; None where the manifest holds everything.
    value: the Python value, or the name of a typed key's implementation.
    """

    path: Entries
    form: str
    dtype: str
    shape: tuple[int, ...] | None = None
    array: str | None = None
    value: Any = None

    def __str__(self) -> str:
        return self.dtype if self.shape is None else f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What one complete step holds: `tree` describes every leaf, `files` maps relative paths to size and SHA-256."""

    schema: int
    kind: str
    step: int
    metadata: Any
    tree: tuple[Leaf, ...]
    files: Mapping[str, File]


def save(
    directory: PathLike, step: int, tree: Tree, *, metadata: Any = None, kind: str = "tree", keep: int | None = None
) -> Path:
    """Save `tree` as `step`, wait until it is on disk and return its folder; all else is as `Writer` says."""
    with Writer(directory, kind=kind, keep=keep) as writer:
        return writer.save(step, tree, metadata)


class Writer:
    """Save steps below `directory` in the background; a context manager that waits for the last one at its end.

    kind: the caller's word for what is saved, kept in the manifest.
    keep: number of complete steps to keep; older ones are deleted once a newer one is complete. None keeps all.

    Leaves may be JAX and NumPy arrays and scalars, typed PRNG keys, bool, int, float, str and None, in any pytree.
    Raises CheckpointError for other leaves, for a directory that cannot be written and for a step that is complete
    already; what fails in the background is raised by the next `save`, `wait` or `close`.
    """

    def __init__(self, directory: PathLike, *, kind: str = "tree", keep: int | None = 3) -> None:
        if keep is not None and keep < 1:
            raise CheckpointError(f"expected keep >= 1 or None, got {keep}; None keeps every step")
        self._directory, self._kind, self._keep = Path(directory).absolute(), kind, keep
        with _explaining(f"expected a directory that can be written at {directory}", "choose or create another"):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tree: Tree, metadata: Any = None) -> Path:
        """Begin to save `tree`; return the step's folder as soon as the arrays may be donated or overwritten.

        metadata: anything JSON can say; it comes back from `manifest`.
        """
        self.wait()
        folder = _folder(self._directory, step)
        if (folder / _MANIFEST).exists():
            raise CheckpointError(f"expected a new step, got {step}, which is complete; use another or delete {folder}")
        leaves, arrays = _encode(tree)
        with _explaining("expected metadata that JSON can say", "convert it, or save it as a leaf"):
            made = Manifest(SCHEMA, self._kind, int(folder.name), json.loads(json.dumps(metadata)), leaves, {})
        with _explaining(f"expected to save {folder}", "free space or set permissions, then save again"):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            if arrays:
                self._orbax.save(folder / _ARRAYS, args=ocp.args.PyTreeSave(arrays))
            self._pending = self._thread.submit(self._commit, folder, made)
        return folder

    def _commit(self, folder: Path, made: Manifest) -> None:
        self._orbax.wait_until_finished()
        for path in [folder, *folder.rglob("*")]:
            _sync(path)
        _write_manifest(folder, dataclasses.replace(made, files=_digests(folder)))
        if self._keep is not None:
            for step in [step for step in steps(self._directory) if step <= made.step][: -self._keep]:
                _delete(_folder(self._directory, step))

    def wait(self) -> None:
        """Wait until the last save is on disk; raise what went wrong with it, once."""
        if self._pending is not None:
            error, self._pending = self._pending.exception(), None
            with _explaining("expected to complete the last save", "free space or set permissions, then save again"):
                if error is not None:
                    raise error

    def close(self) -> None:
        """Wait as `wait` does and release the threads; the writer saves nothing afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    directory: PathLike, like: Tree = None, step: int | None = None, shardings: Tree = None, part: str | None = None
) -> Tree:
    """Return the tree saved as `step` (None: the newest complete one), after verifying it.

    like: a pytree of arrays, jax.ShapeDtypeStruct, …: its structure, shapes and dtypes must be those saved; its leaves
        say what comes back (NumPy or JAX, on which devices where committed). Containers are compared by the names and
        positions of their leaves. None: everything as it was saved, in nested dicts and lists.
    shardings: a sharding, or a pytree of them (a prefix of `like`), to place JAX arrays elsewhere.
    part: name of a subtree, as "params" or "params.layers.0": only its files are read, and `like` describes it alone.

    Raises MismatchError that names every difference; DamagedError that names every bad file and the last good step (an
    older step is never loaded instead); CheckpointError where there is no such complete step.
    """
    with _naming_last_good(directory, step):
        folder = _complete(directory, step)
        found = _read_manifest(folder)
        leaves = _take_part(found.tree, part)
        pairs, treedef = _match(leaves, like)
        _check_files(folder, found, {leaf.array for leaf in found.tree} - {leaf.array for leaf in leaves})
    with _explaining("expected shardings that fit the tree and its arrays", "pass one sharding for all, or others"):
        places = _placements(pairs, treedef, shardings)
        return treedef.unflatten(_restore(folder / _ARRAYS, pairs, places))


def _take_part(leaves: Sequence[Leaf], part: str | None) -> list[Leaf]:
    if part is None:
        return list(leaves)
    found = [(leaf, n) for leaf in leaves for n in range(len(leaf.path) + 1) if _name(leaf.path[:n]) == part]
    if len({leaf.path[:n] for leaf, n in found}) != 1:
        names = sorted({_name(leaf.path[:1]) for leaf in leaves})
        raise MismatchError(f"expected a part that is or lies below one of {names}, got {part!r}; pass one of these")
    return [dataclasses.replace(leaf, path=leaf.path[n:]) for leaf, n in found]


def _match(leaves: Sequence[Leaf], like: Tree) -> tuple[list[tuple[Leaf, Any]], Any]:
    """Pair every saved leaf, in the form it shall take, with its leaf of `like`, in the order of the treedef."""
    targets, treedef = _flatten(_nest(leaves) if like is None else like)
    saved = {leaf.path: leaf for leaf in leaves}
    wanted = saved if like is None else {path: _describe(path, target) for path, target in targets}
    if differences := list(_differences(wanted, saved)):
        raise MismatchError(
            "the checkpoint does not fit `like`:\n" + "\n".join(differences) + "\npass a `like` of what was saved "
            "(`manifest(...).tree` lists it), or like=None to load it as it is"
        )
    return [(dataclasses.replace(saved[path], form=wanted[path].form), target) for path, target in targets], treedef


def _differences(wanted: Mapping[Entries, Leaf], saved: Mapping[Entries, Leaf]) -> Iterator[str]:
    for path in {**wanted, **saved}:
        expected, got = str(wanted.get(path, "nothing")), str(saved.get(path, "nothing"))
        if expected != got:
            yield f"  {_name(path)}: expected {expected}, got {got}"
        elif wanted[path].form == "jax" and jax.dtypes.canonicalize_dtype(saved[path].dtype) != saved[path].dtype:
            yield f"  {_name(path)}: expected {expected}, got JAX without 64 bits; switch jax_enable_x64 on"


def _nest(leaves: Sequence[Leaf], depth: int = 0) -> Tree:
    """Build nested dicts and lists around the leaves; empties become themselves."""
    first = leaves[0]
    if len(first.path) == depth:
        empties: dict[str, Any] = {"None": None, "empty list": [], "empty tuple": []}
        return empties.get(first.dtype, {}) if first.form == "empty" else first
    groups: dict[str | int, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.path[depth], []).append(leaf)
    children = {entry: _nest(group, depth + 1) for entry, group in groups.items()}
    return list(children.values()) if list(children) == list(range(len(children))) else children


def _placements(pairs: Sequence[tuple[Leaf, Any]], treedef: Any, shardings: Tree) -> list[Any]:
    """Return for every leaf the sharding asked for, else the one its leaf of `like` was committed to, else None."""
    places = [getattr(x, "sharding", None) if getattr(x, "committed", True) else None for _, x in pairs]
    if shardings is not None:
        tree = treedef.unflatten([target if leaf.form == "empty" else 0 for leaf, target in pairs])
        asked = iter(jax.tree.leaves(jax.tree.broadcast(shardings, tree)))
        places = [None if leaf.form == "empty" else next(asked) for leaf, _ in pairs]
    for (leaf, _), place in zip(pairs, places, strict=True):
        if place is not None and leaf.form in ("jax", "key"):
            place.shard_shape(leaf.shape)
    return places


def _restore(folder: Path, pairs: Sequence[tuple[Leaf, Any]], places: Sequence[Any]) -> list[Any]:
    rows = [(leaf, target, place) for (leaf, target), place in zip(pairs, places, strict=True)]
    host = ocp.RestoreArgs(restore_type=np.ndarray)
    requests = {
        leaf.array: host if place is None or leaf.form != "jax" else ocp.ArrayRestoreArgs(sharding=place)
        for leaf, _, place in rows
        if leaf.array is not None
    }
    stored = {}
    if requests:
        wanted = ocp.args.PyTreeRestore(dict.fromkeys(requests, 0), restore_args=requests, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as reader:
            stored = reader.restore(folder, args=wanted)
    return [_decode(leaf, target, stored.get(leaf.array), place) for leaf, target, place in rows]


def _decode(leaf: Leaf, target: Any, stored: Any, place: Any) -> Any:
    """Build one leaf; nothing is stored of values, of empties, and of arrays of size zero."""
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
    return jnp.array(stored) if place is None else jax.device_put(stored, place)


def _is_empty(node: Any) -> bool:
    level = tree_util.default_registry.flatten_one_level(node)
    return level is not None and not tuple(level[0])


def _flatten(tree: Tree) -> tuple[list[tuple[Entries, Any]], Any]:
    """Flatten with paths; None and empty containers count as leaves, so that they are compared as well."""
    leaves, treedef = tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)
    return [(tuple(map(_entry, path)), leaf) for path, leaf in leaves], treedef


def _entry(key: Any) -> str | int:
    entry = getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))
    return entry if isinstance(entry, str | int) else str(key)


def _name(path: Entries) -> str:
    return ".".join(map(str, path)) or "(root)"


def _describe(path: Entries, leaf: Any) -> Leaf:
    """Say what one leaf of a tree, or of a `like`, is."""
    if _is_empty(leaf):
        return Leaf(path, "empty", "None" if leaf is None else f"empty {type(leaf).__name__}")
    if type(leaf) in (bool, int, float, str):
        return Leaf(path, "value", type(leaf).__name__, value=leaf)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        form = "key" if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else "jax"
        return Leaf(path, form, str(leaf.dtype), leaf.shape)
    if isinstance(leaf, np.ndarray | np.generic) and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)):
        return Leaf(path, "numpy" if isinstance(leaf, np.ndarray) else "scalar", leaf.dtype.name, leaf.shape)
    got = f"{type(leaf).__name__} {getattr(leaf, 'dtype', '')}".strip()
    raise CheckpointError(
        f"{_name(path)}: expected an array of numbers, a typed PRNG key, bool, int, float, str or None, got {got}; "
        "convert it, or put it into `metadata`"
    )


def _encode(tree: Tree) -> tuple[tuple[Leaf, ...], dict[str, Any]]:
    """Split a tree into what the manifest says of it, and the arrays that orbax writes, by folder."""
    leaves: list[Leaf] = []
    arrays: dict[str, Any] = {}
    for index, (path, value) in enumerate(_flatten(tree)[0]):
        leaf = _describe(path, value)
        if isinstance(value, jax.ShapeDtypeStruct) or (isinstance(value, jax.Array) and value.is_deleted()):
            raise CheckpointError(
                f"{_name(path)}: expected an array with data, got {leaf} without; save it before it is donated"
            )
        if leaf.form == "key":
            leaf, value = dataclasses.replace(leaf, value=str(jax.random.key_impl(value))), jax.random.key_data(value)
        # Orbax refuses arrays of size zero; their shape and dtype say everything.
        if leaf.shape is not None and 0 not in leaf.shape:
            folder = f"{index:05d}.{re.sub(r'[^0-9A-Za-z_.-]', '_', _name(path))[:100]}"
            leaf = dataclasses.replace(leaf, array=folder)
            arrays[folder] = np.asarray(value) if leaf.form == "scalar" else value
        leaves.append(leaf)
    return tuple(leaves), arrays


def steps(directory: PathLike) -> list[int]:
    """Return the complete steps in `directory`, ascending; half-written ones are not listed."""
    return [step for step in _begun(directory) if (_folder(directory, step) / _MANIFEST).is_file()]


def _begun(directory: PathLike) -> list[int]:
    """Return complete and half-written steps; other names are not ours."""
    return sorted(int(path.name) for path in Path(directory).glob("[0-9]" * 8 + "*") if path.name.isdecimal())


def latest(directory: PathLike) -> int | None:
    """Return the newest complete step in `directory`, or None."""
    return max(steps(directory), default=None)


def _folder(directory: PathLike, step: int) -> Path:
    with _explaining("expected a step that is an integer >= 0", "pass the count of steps done"):
        if isinstance(step, bool) or operator.index(step) < 0:
            raise ValueError(step)
    return Path(directory).absolute() / f"{operator.index(step):08d}"


def _complete(directory: PathLike, step: int | None) -> Path:
    """Return the folder of a complete step, the newest for None."""
    done = steps(directory)
    folder = _folder(directory, max(done, default=0) if step is None else step)
    if int(folder.name) in done:
        return folder
    half = [step for step in _begun(directory) if step not in done]
    expected = f"expected a complete step of {directory}, one of {done}, got {step} (half-written, no manifest: {half})"
    raise CheckpointError(f"{expected}; load a complete step, or save it again")


def _delete(folder: Path) -> None:
    # The manifest goes first: a kill in between then leaves a half-written step, not a damaged one.
    (folder / _MANIFEST).unlink()
    _sync(folder)
    shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explaining(expected: str, remedy: str) -> Iterator[None]:
    """Turn what other libraries raise into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{expected}, got {type(error).__name__}: {error}; {remedy}") from error


def manifest(directory: PathLike, step: int | None = None) -> Manifest:
    """Return the manifest of `step` (None: the newest complete one); only the manifest itself is read and checked.

    Raises CheckpointError where there is no such complete step, DamagedError where the manifest is not as written.
    """
    return _read_manifest(_complete(directory, step))


def _render(body: Any) -> str:
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({"manifest": body, "sha256": digest}, indent=1)


def _write_manifest(folder: Path, made: Manifest) -> None:
    temporary = folder / f"{_MANIFEST}.tmp"
    temporary.write_text(_render(dataclasses.asdict(made)), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, folder / _MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def _read_manifest(folder: Path) -> Manifest:
    try:
        text = (folder / _MANIFEST).read_text(encoding="utf-8")
        body = json.loads(text)["manifest"]
        if _render(body) != text:
            raise ValueError("a text that its own SHA-256 does not fit")
        if body["schema"] != SCHEMA:
            raise CheckpointError(
                f"expected schema {SCHEMA}, got {body['schema']} in {folder}; load it with a newer jaxfed"
            )
        return _parse_manifest(body, int(folder.name))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, {_MANIFEST: f"expected the manifest as it was written, got {error}"}) from error


def _parse_manifest(body: dict[str, Any], step: int) -> Manifest:
    leaves: list[dict[str, Any]] = [
        {key: tuple(x) if isinstance(x, list) else x for key, x in leaf.items()} for leaf in body["tree"]
    ]
    made = Manifest(**{**body, "tree": tuple(Leaf(**leaf) for leaf in leaves)})
    for name in [*made.files, *(leaf.array or "" for leaf in made.tree)]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"the path {name!r}, which leaves the folder of the step")
    if made.step != step:
        raise ValueError(f"step {made.step} in the folder of step {step}")
    return made


def verify(directory: PathLike, step: int | None = None) -> None:
    """Read every file of `step` (None: the newest complete one) and compare its size and SHA-256 with the manifest.

    Raises DamagedError that names every changed, truncated, missing or extra file, and the last good step.
    """
    with _naming_last_good(directory, step):
        folder = _complete(directory, step)
        _check_files(folder, _read_manifest(folder))


def _digests(folder: Path, others: Set[str | None] = frozenset()) -> dict[str, File]:
    """Return size and SHA-256 of every regular file of a step, but of its manifest and of the arrays `others`."""
    digests: dict[str, File] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and name.parts != (_MANIFEST,) and others.isdisjoint(name.parts):
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[name.as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    return digests


def _check_files(folder: Path, made: Manifest, others: Set[str | None] = frozenset()) -> None:
    files = {name: file for name, file in made.files.items() if others.isdisjoint(PurePosixPath(name).parts)}
    there = _digests(folder, others)
    names = [name for name in {**files, **there} if files.get(name) != there.get(name)]
    none = "no such file"
    if bad := {name: f"expected {files.get(name, none)}, got {there.get(name, none)}" for name in names}:
        raise _damaged(folder, bad)


def _damaged(folder: Path, bad: Mapping[str, str]) -> DamagedError:
    named = "\n".join(f"  {name}: {problem}" for name, problem in bad.items())
    message = f"step {int(folder.name)} in {folder.parent} is damaged:\n{named}\nput the files back, or delete {folder}"
    return DamagedError(message, next(iter(bad)))


@contextmanager
def _naming_last_good(directory: PathLike, step: int | None) -> Iterator[None]:
    """Add to a DamagedError which older step is good, and how to load it."""
    try:
        yield
    except DamagedError as error:
        done = steps(directory)
        hint = "no older step is good"
        for older in reversed(done[: done.index(done[-1] if step is None else int(step))]):
            with suppress(CheckpointError):
                _check_files(folder := _complete(directory, older), _read_manifest(folder))
                hint = f"the last good step is {older}: load it with step={older}"
                break
        raise DamagedError(f"{error}; {hint}", error.file) from error
