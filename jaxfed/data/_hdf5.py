"""Reader of the federated HDF5 files that TensorFlow Federated publishes: EMNIST by writers, CIFAR-100, Shakespeare."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxfed.core.checks import check_range
from jaxfed.data import _casts as casts

GROUP = "examples"
NAMES = {"pixels": "x", "image": "x", "snippets": "x", "label": "y"}
"""What the files call samples and labels; other arrays keep their names."""


def read_hdf5(path: str | Path, users: int | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Read user → named arrays [n, ...] of an HDF5 file with groups "examples/<user>", in the order of the names.

    The published split of federated EMNIST is two files with the same writers: 3,400 of them with 671,585 and 77,483
    characters, or 3,383 with 341,873 and 40,832 digits.

        train = jaxfed.data.read_hdf5("fed_emnist_train.h5")
        test = jaxfed.data.read_hdf5("fed_emnist_test.h5")
        clients = jaxfed.data.client_data(list(train.values()))
        held_out = jaxfed.data.client_data([test[user] for user in train])

    "pixels", "image" and "snippets" become "x", "label" becomes "y"; integers int32, bytes text.

    Args:
        path: the file; needs h5py (extra "hdf5").
        users: read the first so many only. Default: all; characters of all writers take 2.1 GB.

    Raises:
        FileNotFoundError: no such file.
        ImportError: h5py is not installed.
        ValueError: a file of another form, a user whose arrays differ in length, integers beyond 32 bits; fewer users
            than asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an HDF5 file; unpack the archive first")
    try:
        import h5py
    except ImportError as missing:
        raise ImportError('expected h5py to read HDF5; pip install "jaxfed-jaxspec[hdf5]"') from missing
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: expected an HDF5 file, got {error}") from error
    with file:
        if GROUP not in file or not len(file[GROUP]):
            raise ValueError(f'{path}: expected groups "{GROUP}/<user>", got {sorted(file)}')
        names = list(file[GROUP])
        if users is not None:
            check_range("users", users, least=1, most=len(names), whole=True)
        return {name: _arrays(file[GROUP][name], f"{path}: user {name!r}") for name in names[:users]}


def _arrays(group: Any, where: str) -> dict[str, np.ndarray]:
    if not hasattr(group, "items"):
        raise ValueError(f"{where}: expected a group of arrays, got an array {group.shape}")
    arrays = {NAMES.get(name, name): _plain(np.asarray(array), f"{where}, {name}") for name, array in group.items()}
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(f"{where}: expected arrays [n, ...] of one length, got lengths {lengths}")
    return arrays


def _plain(array: np.ndarray, what: str) -> np.ndarray:
    """Return text for bytes, and integers of 64 bits as int32."""
    if array.dtype.kind in "OS":
        text = [each.decode("utf-8") if isinstance(each, bytes) else each for each in array.ravel()]
        return np.array(text, dtype=str).reshape(array.shape)
    return casts.integer_labels(array, what) if array.dtype in (np.int64, np.uint64) else array
