"""Readers of datasets on disk; nothing is downloaded. Images are uint8 [n, H, W, channels], labels int32 [n].

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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfed.data._casts import integer_labels

Images = TypeVar("Images", np.ndarray, Array)
Split = dict[str, np.ndarray]
MOST_CHANNELS = 4
"""Channels of a single image: grey, red/green/blue, and alpha."""
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """Read one file of the idx format (MNIST, Fashion-MNIST, EMNIST), plain or gzip, with any name.

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
    return {"x": x[..., None], "y": integer_labels(y, str(labels))}


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
    return {"x": x[..., None] if x.ndim == 3 else x, "y": integer_labels(y.reshape(-1), f"{path}: {names[1]}")}


def normalised(images: Images, mean: float | Sequence[float], std: float | Sequence[float]) -> Images:
    """Return (images/255 − mean)/std as float32, on host or device; mean and std are in units of full scale.

    The dtype determines full scale: for uint8 it is 255; floating-point images are in [0, 1] and are not
    divided. The channel axis is the last axis of [n, H, W, channels], and of [H, W, channels] with at most four.

    Args:
        images: uint8 or floating-point, [..., H, W, channels]; any shape if mean and std are numbers. Inside compiled
            code, where no number can be looked at, uint8 only.
        mean: a number, or one for every channel.
        std: a number, or one for every channel, above 0.

    Raises:
        ValueError: images of another type, range or shape, or mean and std that do not fit their channels.
    """
    scale = _full_scale(images)
    middle, spread = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if not (np.isfinite(middle).all() and np.isfinite(spread).all() and (spread > 0).all()):
        raise ValueError(
            f"expected a finite mean and std > 0, got {mean} and {std}; leave out channels without variation"
        )
    middle, spread = (_by_channel(each, images) for each in (middle, spread))
    return (images.astype(np.float32) / scale - middle) / spread


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return (mean, std) of every channel of images [..., channels], in units of full scale, for `normalised`.

    Raises:
        ValueError: no images, or such as `normalised` does not take.
    """
    if not np.size(images):
        raise ValueError(f"expected at least one image, got {list(np.shape(images))}")
    channels, scale = _channels(images), _full_scale(images)
    if scale == 1:
        flat = np.reshape(images, (-1, channels))
        return flat.mean(axis=0, dtype=np.float64).tolist(), flat.std(axis=0, dtype=np.float64).tolist()
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(channels)]
    levels = np.arange(256) / 255
    means = [float(np.average(levels, weights=count)) for count in counts]
    spreads = [np.average((levels - mean) ** 2, weights=count) for mean, count in zip(means, counts, strict=True)]
    return means, [float(np.sqrt(spread)) for spread in spreads]


def _by_channel(numbers: np.ndarray, images: np.ndarray | Array) -> np.ndarray:
    """Return a number, or one for every channel, with as many axes as the images."""
    if numbers.size == 1:
        return numbers.reshape((1,) * images.ndim)
    if numbers.shape != (_channels(images),):
        shape = list(numbers.shape)
        raise ValueError(f"expected a number, or one for each of {_channels(images)} channels, got {shape}")
    return numbers.reshape((1,) * (images.ndim - 1) + (-1,))


def _full_scale(images: np.ndarray | Array) -> np.float32:
    """Return what images are divided by."""
    if images.dtype == np.uint8:
        return np.float32(255)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"expected images of uint8, or of floats from 0 to 1, got {images.dtype}; convert them first")
    if isinstance(images, jax.core.Tracer):
        raise ValueError(f"expected uint8 in compiled code, got {images.dtype}; normalise floats on the host")
    host = np.asarray(images, np.float32)
    if host.size and not (host.min() >= 0 and host.max() <= 1):
        raise ValueError(
            f"expected floats from 0 to 1, got {host.min():g} to {host.max():g}; divide by full scale first, or store "
            "levels from 0 to 255 as uint8"
        )
    return np.float32(1)


def _channels(images: np.ndarray | Array) -> int:
    """Return the length of the axis of channels; of three axes only the last of [H, W, channels] can be meant."""
    if images.ndim > 3 or (images.ndim == 3 and images.shape[-1] <= MOST_CHANNELS):
        return int(images.shape[-1])
    raise ValueError(
        f"expected images [n, H, W, channels], or one with at most {MOST_CHANNELS} channels, got {list(images.shape)}; "
        "give grey images their channel: images[..., None]"
    )
