"""Reader of the LEAF benchmark's JSON files: natural clients (FEMNIST, CelebA, Reddit, Shakespeare, Synthetic)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed.data import _casts as casts

Users = dict[str, dict[str, np.ndarray]]
"""User → "x" and "y", arrays [n, ...] each."""


def read_leaf(path: str | Path, image_shape: tuple[int, ...] | None = None) -> Users:
    """Read one LEAF file, or all `*.json` of a folder such as `data/train`, in the order of their names.

    Numbers become float32 (x) and int32 (y), text stays text. For clients that are split by samples read both parts:

        train, test = jaxfed.data.read_leaf("data/train"), jaxfed.data.read_leaf("data/test")
        clients = jaxfed.data.client_data(list(train.values()))
        held_out = jaxfed.data.client_data([test[user] for user in train], allow_empty=True)

    Args:
        path: file, or folder of files with "users" and "user_data" each.
        image_shape: shape of one x, such as (28, 28, 1) for FEMNIST, whose files hold 784 numbers.

    Raises:
        FileNotFoundError: no such file, or a folder without `*.json`.
        ValueError: a file of another form, a user in two files, or samples of unequal shapes; names file and user.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: expected a folder with LEAF's *.json files, got none")
    users: Users = {}
    for file in files:
        for user, samples in _user_data(file).items():
            if user in users:
                raise ValueError(f"{file}: user {user!r} is in another file of the folder as well")
            users[user] = _arrays(samples, f"{file}: user {user!r}", image_shape)
    first = next((each for each in users.values() if len(each["y"])), None)
    return users if first is None else {user: _like(samples, first) for user, samples in users.items()}


def _user_data(file: Path) -> dict[str, Any]:
    try:
        contents = json.loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(contents, dict) or not isinstance(contents.get("user_data"), dict):
        raise ValueError(f'{file}: expected a LEAF file, an object with "users" and "user_data"')
    data: dict[str, Any] = contents["user_data"]
    names: list[str] = contents.get("users") or list(data)
    missing = [user for user in names if user not in data]
    if missing:
        raise ValueError(f'{file}: user {missing[0]!r} is in "users", but not in "user_data"')
    return {user: data[user] for user in names}


def _arrays(samples: Any, where: str, image_shape: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    if not isinstance(samples, dict) or {"x", "y"} - samples.keys():
        raise ValueError(f'{where}: expected "x" and "y", got {samples!r:.100}')
    try:
        x, y = (np.asarray(samples[name]) for name in ("x", "y"))
    except ValueError as error:
        raise ValueError(f"{where}: expected samples of one shape: {error}") from error
    if not x.ndim or not y.ndim:
        raise ValueError(f"{where}: expected lists x and y, got {samples!r:.100}")
    if len(x) != len(y):
        raise ValueError(f"{where}: expected as many x as y, got {len(x)} and {len(y)}")
    if x.dtype.kind in "iuf":
        x = x.astype(np.float32)
    if image_shape is not None:
        if x.size != len(x) * int(np.prod(image_shape)):
            raise ValueError(f"{where}: expected samples of shape {image_shape}, got {x.shape[1:]}")
        x = x.reshape(len(x), *image_shape)
    return {"x": x, "y": casts.integer_labels(y, f"{where}, y") if y.dtype.kind in "iu" else y}


def _like(samples: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the samples; where there are none, empty arrays of the shapes and dtypes of another user's."""
    return samples if len(samples["y"]) else {name: array[:0] for name, array in first.items()}
