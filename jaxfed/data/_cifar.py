"""CIFAR-10 and CIFAR-100 in every form they are passed around in: python pickles, binary records, one npz file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxfed.core.checks import check_choice
from jaxfed.data._casts import integer_labels
from jaxfed.data._datasets import Split, splits_of_npz
from jaxfed.data._pickles import read_pickle

PIXELS = 3 * 32 * 32
Labels = Literal["fine", "coarse"]


class Form(NamedTuple):
    """Files of one published form: its training and test files, and the folder that its archive unpacks to."""

    train: Sequence[str]
    test: str
    folder: str
    read: Callable[[Path, Labels], Split]


def cifar(path: str | Path, labels: Labels = "fine") -> dict[str, Split]:
    """Read CIFAR-10 or CIFAR-100; which of them, and in which form, is recognised from the files.

    Args:
        path: a folder with the files of the python or the binary form, or with the folder that the archive unpacks to;
            or a .npz file with x_train, y_train, x_test, y_test.
        labels: "fine" classes, or CIFAR-100's 20 "coarse" ones.

    Returns:
        {"train": {"x", "y"}, "test": {"x", "y"}}, x uint8 [n, 32, 32, 3], y int32 [n].

    Raises:
        FileNotFoundError: no such folder, or none of the expected files in it.
        ValueError: a damaged file, a pickle with anything but arrays, bytes, numbers and lists, or no coarse labels.
    """
    check_choice("labels", labels, ("fine", "coarse"))
    path = Path(path)
    if path.is_file():
        if path.suffix != ".npz":
            raise ValueError(f"{path}: expected a folder or a .npz file; unpack an archive first (tar xf)")
        if labels != "fine":
            raise ValueError(f'{path}: a .npz file has one kind of labels; pass labels="fine", or the published files')
        return {part: _pictures(path, split) for part, split in splits_of_npz(path).items()}
    for form in FORMS:
        for folder in (path, path / form.folder):
            if (folder / form.train[0]).is_file():
                return _split(form, folder, labels)
    wanted = ", ".join(form.train[0] for form in FORMS)
    raise FileNotFoundError(f"{path}: expected the files of CIFAR-10 or CIFAR-100 ({wanted}), or a .npz file")


def _split(form: Form, folder: Path, labels: Labels) -> dict[str, Split]:
    missing = [name for name in (*form.train, form.test) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: expected {', '.join((*form.train, form.test))}; missing {missing}")
    parts = [form.read(folder / name, labels) for name in form.train]
    train = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    return {"train": train, "test": form.read(folder / form.test, labels)}


def _python(path: Path, labels: Labels) -> Split:
    batch = read_pickle(path)
    keys = [b"coarse_labels"] if labels == "coarse" else [b"labels", b"fine_labels"]
    if not isinstance(batch, dict):
        raise ValueError(f"{path}: expected a pickled dictionary, got {type(batch).__name__}")
    # Python 2 wrote bytes; a copy that Python 3 wrote may have text.
    batch = {name.encode() if isinstance(name, str) else name: value for name, value in batch.items()}
    key = next((key for key in keys if key in batch), None)
    if key is None or b"data" not in batch:
        raise ValueError(f"{path}: expected 'data' and {keys[-1].decode()!r}, got {sorted(map(repr, batch))}")
    return _records(path, np.asarray(batch[b"data"]), np.asarray(batch[key]))


def _binary(label_bytes: int) -> Callable[[Path, Labels], Split]:
    def read(path: Path, labels: Labels) -> Split:
        raw, size = np.frombuffer(path.read_bytes(), np.uint8), label_bytes + PIXELS
        if not len(raw) or len(raw) % size:
            raise ValueError(f"{path}: expected records of {size} bytes, got {len(raw)} bytes; the file is damaged")
        if labels == "coarse" and label_bytes == 1:
            raise ValueError(f"{path}: expected coarse labels, but CIFAR-10 has none; ask for 'fine'")
        records = raw.reshape(-1, size)
        return _records(path, records[:, label_bytes:], records[:, 0 if labels == "coarse" else label_bytes - 1])

    return read


def _records(path: Path, data: np.ndarray, labels: np.ndarray) -> Split:
    """Return rows of red, green and blue planes as images."""
    if data.dtype != np.uint8 or data.shape[1:] != (PIXELS,) or labels.shape != data.shape[:1]:
        raise ValueError(
            f"{path}: expected uint8 [n, {PIXELS}] and labels [n], got {data.dtype}{list(data.shape)} "
            f"and {list(labels.shape)}; the file is damaged"
        )
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return {"x": images, "y": integer_labels(labels, f"{path}: labels")}


def _pictures(path: Path, split: Split) -> Split:
    """Return images [n, H, W, channels] of an npz file, which may have channels first."""
    x = split["x"]
    if x.shape[1:] == (3, 32, 32):
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if x.shape[1:] != (32, 32, 3):
        raise ValueError(f"{path}: expected images [n, 32, 32, 3] or [n, 3, 32, 32], got {list(x.shape)}")
    return {**split, "x": x}


FORMS = (
    Form([f"data_batch_{n}" for n in range(1, 6)], "test_batch", "cifar-10-batches-py", _python),
    Form([f"data_batch_{n}.bin" for n in range(1, 6)], "test_batch.bin", "cifar-10-batches-bin", _binary(1)),
    Form(["train"], "test", "cifar-100-python", _python),
    Form(["train.bin"], "test.bin", "cifar-100-binary", _binary(2)),
)
