"""The manifest of a step, written last, and the verification of its files against it."""

import dataclasses
import hashlib
import json
import operator
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from jaxfed.checkpoint._errors import CheckpointError, DamagedError, PathLike, explaining
from jaxfed.checkpoint._leaves import Leaf

SCHEMA = 1
"""Version of the manifest's layout; `load` refuses others."""
MANIFEST = "manifest.json"

File = dict[str, int | str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of one complete step.

    Attributes:
        schema: version of the layout.
        kind: of `Writer`.
        step: its number.
        metadata: of `Writer.save`.
        tree: description of every leaf.
        files: relative path → size and SHA-256.
    """

    schema: int
    kind: str
    step: int
    metadata: Any
    tree: tuple[Leaf, ...]
    files: Mapping[str, File]


def steps(directory: PathLike) -> list[int]:
    """Return the complete steps in `directory`, ascending; half-written ones are not listed."""
    return [step for step in begun(directory) if (folder_of(directory, step) / MANIFEST).is_file()]


def begun(directory: PathLike) -> list[int]:
    """Return complete and half-written steps; other names are ignored."""
    return sorted(int(path.name) for path in Path(directory).glob("[0-9]" * 8 + "*") if path.name.isdecimal())


def half_written(directory: PathLike) -> list[int]:
    """Return the steps without a manifest, ascending."""
    return sorted({*begun(directory)} - {*steps(directory)})


def latest(directory: PathLike) -> int | None:
    """Return the newest complete step in `directory`, or None."""
    return max(steps(directory), default=None)


def folder_of(directory: PathLike, step: int) -> Path:
    """Return the folder of a step; raise CheckpointError unless it is an integer ≥ 0."""
    with explaining("expected a step that is an integer >= 0", "pass the count of steps done"):
        if isinstance(step, bool) or operator.index(step) < 0:
            raise ValueError(step)
    return Path(directory).absolute() / f"{operator.index(step):08d}"


def complete(directory: PathLike, step: int | None) -> Path:
    """Return the folder of a complete step, the newest for None."""
    done = steps(directory)
    folder = folder_of(directory, max(done, default=0) if step is None else step)
    if int(folder.name) in done:
        return folder
    half = half_written(directory)
    expected = f"expected a complete step of {directory}, one of {done}, got {step} (half-written, no manifest: {half})"
    raise CheckpointError(f"{expected}; load a complete step, or save it again")


def delete(folder: Path) -> None:
    """Delete a step, complete or not."""
    # Manifest first: a kill in between leaves a half-written step, not a damaged one.
    (folder / MANIFEST).unlink(missing_ok=True)
    sync(folder)
    shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Wait until a file or folder is durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifest(directory: PathLike, step: int | None = None) -> Manifest:
    """Return the manifest of `step` (None: the newest complete one); only the manifest itself is read and checked.

    Raises CheckpointError if there is no such complete step, DamagedError if the manifest was changed.
    """
    return read_manifest(complete(directory, step))


def render(body: Any) -> str:
    """Return the text of a manifest: its body and the SHA-256 of the body."""
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({"manifest": body, "sha256": digest}, indent=1)


def write_manifest(folder: Path, made: Manifest) -> None:
    """Write the manifest atomically: a kill leaves it whole or absent."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(render(dataclasses.asdict(made)), encoding="utf-8")
    sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    sync(folder)
    sync(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete step; raise DamagedError unless it is as it was written."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        body = json.loads(text)["manifest"]
        if render(body) != text:
            raise ValueError("a text that its own SHA-256 does not fit")
        if body["schema"] != SCHEMA:
            raise CheckpointError(
                f"expected schema {SCHEMA}, got {body['schema']} in {folder}; load it with a newer jaxfed"
            )
        return _parse_manifest(body, int(folder.name))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, {MANIFEST: f"expected the manifest as it was written, got {error}"}) from error


def _parse_manifest(body: dict[str, Any], step: int) -> Manifest:
    leaves: list[dict[str, Any]] = [
        {key: tuple(x) if isinstance(x, list) else x for key, x in leaf.items()} for leaf in body["tree"]
    ]
    made = Manifest(**{**body, "tree": tuple(Leaf(**leaf) for leaf in leaves)})
    for name in [*made.files, *(leaf.array or "" for leaf in made.tree)]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"the path {name!r}, which leaves the folder of the step")
    for file in made.files.values():
        if "link" in file:
            raise ValueError(f"a link, {file}, as a file of the step")
    for leaf in made.tree:
        _check_leaf(leaf)
    if made.step != step:
        raise ValueError(f"step {made.step} in the folder of step {step}")
    return made


def _check_leaf(leaf: Leaf) -> None:
    """Raise ValueError for a leaf that cannot exist; only arrays of size zero have no folder."""
    shape = leaf.shape
    valid = isinstance(leaf.path, tuple) and all(isinstance(entry, str | int) for entry in leaf.path)
    valid &= isinstance(leaf.dtype, str) and isinstance(leaf.array, str | None)
    if leaf.form in ("value", "empty"):
        valid &= shape is None and leaf.array is None
    else:
        valid &= isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        valid &= leaf.form in ("jax", "numpy", "scalar", "key") and bool(leaf.array) == (0 not in (shape or ()))
    if not valid:
        raise ValueError(f"a leaf that cannot be: {leaf!r:.200}")


def verify(directory: PathLike, step: int | None = None) -> None:
    """Read every file of `step` (None: the newest complete one) and compare its size and SHA-256 with the manifest.

    Raises DamagedError that names every changed, truncated, missing or extra file, and the last good step.
    """
    with naming_last_good(directory, step):
        folder = complete(directory, step)
        check_files(folder, read_manifest(folder))


def digests(folder: Path, others: Set[str | None] = frozenset()) -> dict[str, File]:
    """Return size and SHA-256 of every file of a step, but of its manifest and of the arrays `others`.

    Of a link, which no step contains, only its target is returned, and is not read.
    """
    digests: dict[str, File] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts == (MANIFEST,) or not others.isdisjoint(name.parts):
            continue
        if path.is_symlink():
            digests[name.as_posix()] = {"link": os.readlink(path)}
        elif path.is_file():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[name.as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    return digests


def check_files(folder: Path, made: Manifest, others: Set[str | None] = frozenset()) -> None:
    """Compare all files but those of the arrays `others` with the manifest; raise DamagedError that names bad ones."""
    files = {name: file for name, file in made.files.items() if others.isdisjoint(PurePosixPath(name).parts)}
    there = digests(folder, others)
    names = [name for name in {**files, **there} if files.get(name) != there.get(name)]
    none = "no such file"
    if bad := {name: f"expected {files.get(name, none)}, got {there.get(name, none)}" for name in names}:
        raise _damaged(folder, bad)


def _damaged(folder: Path, bad: Mapping[str, str]) -> DamagedError:
    named = "\n".join(f"  {name}: {problem}" for name, problem in bad.items())
    message = f"step {int(folder.name)} in {folder.parent} is damaged:\n{named}\nput the files back, or delete {folder}"
    return DamagedError(message, next(iter(bad)))


@contextmanager
def naming_last_good(directory: PathLike, step: int | None) -> Iterator[None]:
    """Add the newest older step that is good to a DamagedError."""
    try:
        yield
    except DamagedError as error:
        done = steps(directory)
        hint = "no older step is good"
        for older in reversed(done[: done.index(done[-1] if step is None else int(step))]):
            with suppress(CheckpointError):
                check_files(folder := complete(directory, older), read_manifest(folder))
                hint = f"the last good step is {older}: load it with step={older}"
                break
        raise DamagedError(f"{error}; {hint}", error.file) from error
