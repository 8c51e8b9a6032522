"""Readers of datasets that lie on disk: nothing is downloaded. Images are uint8 [n, H, W, channels], labels int32 [n].

A missing file is a FileNotFoundError that names what was looked for; a file that is damaged or no such file is a
ValueError that names it.
"""

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Array

Images = TypeVar("Images", np.ndarray, Array)
Split = dict[str, np.ndarray]
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """Read one file of the idx format (MNIST, Fashion-MNIST, EMNIST), plain or gzip, whatever its name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no idx file, or a damaged or truncated one.
    """
    raw = _unzipped(Path(path))
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or not raw[3]:
        raise ValueError(f"{path}: expected an idx file, beginning 00 00 type dimensions, got {raw[:4].hex(' ')}")
    begin = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:begin], ">u4").tolist()) if len(raw) >= begin else ()
    dtype = np.dtype(IDX_TYPES[raw[2]])
    expected = begin + math.prod(shape) * dtype.itemsize
    if len(raw) < begin or len(raw) != expected:
        raise ValueError(f"{path}: expected {expected} bytes for {list(shape)}, got {len(raw)}; the file is damaged")
    return np.frombuffer(raw, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="))


def mnist(directory: str | Path) -> dict[str, Split]:
    """Read MNIST, Fashion-MNIST or another set in the four idx files `train-images-idx3-ubyte[.gz]`, ….

    Returns:
      {"train": {"x", "y"}, "test": {"x", "y"}}, x uint8 [n, 28, 28, 1], y int32 [n].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a damaged file, or images and labels that do not fit together.
    """
    return {part: _mnist_part(Path(directory), prefix) for part, prefix in (("train", "train"), ("test", "t10k"))}


def _mnist_part(directory: Path, prefix: str) -> Split:
    images = _idx_file(directory, f"{prefix}-images", 3)
    labels = _idx_file(directory, f"{prefix}-labels", 1)
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"{images}: expected images [n, H, W] for the labels {list(y.shape)}, got {list(x.shape)}")
    return {"x": x[..., None], "y": y.astype(np.int32)}


def _idx_file(directory: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{dot}idx{rank}-ubyte{end}" for dot in "-." for end in (".gz", "")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: expected one of {', '.join(names)}")


def _unzipped(path: Path) -> bytes:
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, got a damaged one ({error}); copy it again") from error


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read the named arrays of a .npz file; one that would need pickle is refused.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no npz file, a damaged one, or one with Python objects.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole npz file of plain arrays ({error})") from error


def splits_of_npz(path: str | Path) -> dict[str, Split]:
    """Read {"train": {"x", "y"}, "test": ...} from a .npz file with x_train or train_x, and so on.

    Images [n, H, W] get one channel, labels [n, 1] lose their second axis; other arrays stay as they are.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no npz file, a damaged one, or one without these arrays.
    """
    arrays = read_npz(path)
    return {part: _npz_part(path, arrays, part) for part in ("train", "test")}


def _npz_part(path: str | Path, arrays: Mapping[str, np.ndarray], part: str) -> Split:
    names = [next((name for name in (f"{kind}_{part}", f"{part}_{kind}") if name in arrays), "") for kind in "xy"]
    if not all(names):
        raise ValueError(f"{path}: expected x_{part} and y_{part}, or {part}_x and {part}_y, got {sorted(arrays)}")
    x, y = (arrays[name] for name in names)
    if y.ndim != 1 and y.shape != (len(x), 1) or not x.ndim or len(x) != len(y):
        raise ValueError(f"{path}: expected labels [n] for {names[0]} {list(x.shape)}, got {list(y.shape)}")
    return {"x": x[..., None] if x.ndim == 3 else x, "y": y.reshape(-1).astype(np.int32)}


def normalised(images: Images, mean: float | Sequence[float], std: float | Sequence[float]) -> Images:
    """(images/255 − mean)/std as float32, on host or device, with mean and std per channel in units of full scale.

    Args:
      images: uint8 [..., H, W, channels].
      mean: a number, or one for every channel.
      std: likewise, above 0.
    """
    middle, scale = (np.asarray(each, np.float32).reshape((1,) * (images.ndim - 1) + (-1,)) for each in (mean, std))
    return (images.astype(np.float32) / np.float32(255) - middle) / scale


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """(mean, std) of every channel of uint8 images [..., channels], in units of full scale, for `normalised`."""
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    levels = np.arange(256) / 255
    means = [float(np.average(levels, weights=count)) for count in counts]
    spreads = [np.average((levels - mean) ** 2, weights=count) for mean, count in zip(means, counts, strict=True)]
    return means, [float(np.sqrt(spread)) for spread in spreads]
