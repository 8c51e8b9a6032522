"""Readers, each on a tiny file of its format that the test writes."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed.data import channel_statistics, cifar, mnist, normalised, read_idx, read_npz, read_roles
from jaxfed.data._pickles import read_pickle

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
FINE, COARSE = np.array([7, 0, 9]), np.array([1, 0, 3])
PLANES = IMAGES.transpose(0, 3, 1, 2).reshape(3, -1)


def idx(array, kind):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), [("u1", 8), ("i1", 9), (">i2", 11), (">i4", 12), (">f4", 13), (">f8", 14)])
def test_idx_of_every_type(tmp_path, dtype, kind, zipped):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    raw = idx(array, kind)
    (tmp_path / "file").write_bytes(gzip.compress(raw) if zipped else raw)
    result = read_idx(tmp_path / "file")
    np.testing.assert_array_equal(result, array)
    assert result.dtype.isnative


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x89PNG1234", "expected an idx file, beginning 00 00 type dimensions, got 89 50 4e 47"),
        (b"", "expected an idx file"),
        (idx(np.zeros((2, 2), np.uint8), 7), "expected an idx file"),
        (idx(np.zeros((2, 2), np.uint8), 8)[:-1], r"expected 16 bytes for \[2, 2\], got 15; the file is damaged"),
        (idx(np.zeros((2, 2), np.uint8), 8) + b"1", "got 17; the file is damaged"),
        (idx(np.zeros((2, 2), np.uint8), 8)[:7], "got 7; the file is damaged"),
        (gzip.compress(idx(RNG.integers(0, 9, 99, np.uint8), 8), mtime=0)[:-12], "expected a whole gzip file"),
        (gzip.compress(bytes(99), mtime=0)[:12] + b"\xff" * 30, "expected a whole gzip file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, raw, message):
    (tmp_path / "broken.gz").write_bytes(raw)
    with pytest.raises(ValueError, match=f"broken.gz: .*{message}"):
        read_idx(tmp_path / "broken.gz")


def write_mnist(folder, dot="-", end=".gz"):
    for prefix, n in (("train", 5), ("t10k", 2)):
        images, labels = RNG.integers(0, 256, (n, 4, 4), np.uint8), np.arange(n, dtype=np.uint8)
        for stem, array in ((f"images{dot}idx3", images), (f"labels{dot}idx1", labels)):
            raw = idx(array, 8)
            (folder / f"{prefix}-{stem}-ubyte{end}").write_bytes(gzip.compress(raw) if end else raw)


@pytest.mark.parametrize(("dot", "end"), [("-", ".gz"), ("-", ""), (".", "")])
def test_mnist(tmp_path, dot, end):
    write_mnist(tmp_path, dot, end)
    result = mnist(tmp_path)
    assert result["train"]["x"].shape == (5, 4, 4, 1)
    assert result["test"]["y"].tolist() == [0, 1]
    assert (result["train"]["x"].dtype, result["train"]["y"].dtype) == (np.uint8, np.int32)


def test_mnist_names_what_is_missing_or_does_not_fit(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="expected one of t10k-labels-idx1-ubyte.gz, t10k-labels-idx1-ubyte"):
        mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8), 8))
    with pytest.raises(ValueError, match=r"t10k-images.*for the labels \[3\], got \[2, 4, 4\]"):
        mnist(tmp_path)


def test_fashion_mnist_itself():
    folder = os.environ.get("JAXFED_FASHION_MNIST")
    if not folder:
        pytest.skip("JAXFED_FASHION_MNIST does not name a folder with Fashion-MNIST")
    result = mnist(folder)
    assert result["train"]["x"].shape == (60000, 28, 28, 1)
    assert np.bincount(result["test"]["y"]).tolist() == [1000] * 10
    mean, std = channel_statistics(result["train"]["x"])
    assert (mean, std) == ([pytest.approx(0.2860, abs=1e-4)], [pytest.approx(0.3530, abs=1e-4)])


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, as the published files are."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2(value, path):
    with path.open("wb") as file:
        Python2(file, 2).dump(value)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))


def python3(value, path):
    path.write_bytes(pickle.dumps(value))


def write_python(folder, hundred, write):
    if hundred:
        batch = {"data": PLANES, "fine_labels": FINE.tolist(), "coarse_labels": COARSE.tolist(), "filenames": ["a.png"]}
        for name in ("train", "test"):
            write(batch, folder / name)
    else:
        for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
            write({"data": PLANES, "labels": FINE.tolist(), "batch_label": b"one"}, folder / name)


def write_binary(folder, hundred, _):
    labels = [COARSE, FINE] if hundred else [FINE]
    raw = np.concatenate([np.stack(labels, 1).astype(np.uint8), PLANES], axis=1).tobytes()
    names = ("train", "test") if hundred else [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for name in names:
        (folder / f"{name}.bin").write_bytes(raw)


FORMS = {"python 2": (write_python, python2), "python 3": (write_python, python3), "binary": (write_binary, None)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hundred", [False, True], ids=["ten", "hundred"])
def test_cifar_is_recognised_in_every_form(tmp_path, form, hundred):
    write, how = FORMS[form]
    write(tmp_path, hundred, how)
    result = cifar(tmp_path)
    repeats = 1 if hundred else 5
    np.testing.assert_array_equal(result["train"]["x"], np.tile(IMAGES, (repeats, 1, 1, 1)))
    np.testing.assert_array_equal(result["test"]["x"], IMAGES)
    assert result["train"]["y"].tolist() == FINE.tolist() * repeats
    assert result["test"]["y"].dtype == np.int32
    if hundred:
        assert cifar(tmp_path, "coarse")["test"]["y"].tolist() == COARSE.tolist()
    else:
        with pytest.raises(ValueError, match="coarse"):
            cifar(tmp_path, "coarse")


def test_cifar_in_the_folder_of_its_archive(tmp_path):
    (tmp_path / "cifar-100-binary").mkdir()
    write_binary(tmp_path / "cifar-100-binary", True, None)
    assert cifar(tmp_path)["test"]["y"].tolist() == FINE.tolist()


@pytest.mark.parametrize("names", ["x_train y_train x_test y_test", "train_x train_y test_x test_y"])
@pytest.mark.parametrize("planes_first", [False, True])
def test_cifar_in_an_npz_file(tmp_path, names, planes_first):
    x = PLANES.reshape(3, 3, 32, 32) if planes_first else IMAGES
    np.savez(tmp_path / "c.npz", **dict(zip(names.split(), (x, FINE[:, None], x, FINE), strict=True)))
    result = cifar(tmp_path / "c.npz")
    np.testing.assert_array_equal(result["train"]["x"], IMAGES)
    assert result["train"]["y"].tolist() == FINE.tolist()


def test_cifar_names_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the files of CIFAR-10 or CIFAR-100 \(data_batch_1, "):
        cifar(tmp_path)
    with pytest.raises(FileNotFoundError):
        cifar(tmp_path / "nowhere")
    write_binary(tmp_path, False, None)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing \['data_batch_3.bin'\]"):
        cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="data_batch_3.bin: expected records of 3073 bytes, got 100 bytes"):
        cifar(tmp_path)
    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="unpack an archive first"):
        cifar(tmp_path / "cifar.tar.gz")
    np.savez(
        tmp_path / "own.npz",
        **{f"{name}_{part}": np.zeros((1, 32, 32, 3)) for name in "xy" for part in ("train", "test")},
    )
    with pytest.raises(ValueError, match='pass labels="fine"'):
        cifar(tmp_path / "own.npz", "coarse")
    with pytest.raises(ValueError, match="Did you mean 'coarse'"):
        cifar(tmp_path, "corse")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "expected a pickled dictionary, got list"),
        ({"data": PLANES}, "expected 'data' and 'fine_labels'"),
        ({"data": PLANES, "labels": [1]}, r"uint8\[3, 3072\] and \[1\]; the file is damaged"),
        ({"data": PLANES.astype(float), "labels": [1, 2, 3]}, r"got float64\[3, 3072\]"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, value, message):
    for name in ("train", "test"):
        python3(value, tmp_path / name)
    with pytest.raises(ValueError, match=f"train: .*{message}"):
        cifar(tmp_path)


class Evil:
    """Would create a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path, protocol):
    value = {b"a": np.arange(6, dtype=">i4").reshape(2, 3), "b": [np.float32(2), b"\xff", None, 3]}
    value["c"] = (value[b"a"], 1)
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
    result = read_pickle(tmp_path / "p")
    np.testing.assert_array_equal(result[b"a"], value[b"a"])
    np.testing.assert_array_equal(result.get("c", result.get(b"c"))[0], value[b"a"])
    assert result.get("b", result.get(b"b")) == value["b"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: {"data": Evil(path / "touched")}, "refused to load pathlib"),
        (lambda path: np.array([Evil(path / "touched")], object), "refused an array of object|refused to load pathlib"),
        (lambda path: os.system, "refused to load posix.system"),
        (lambda path: np.array([object], object), "refused"),
        (lambda path: np.zeros(2, "M8[s]"), "refused an array of datetime64"),
    ],
)
def test_pickles_that_would_do_something_are_refused(tmp_path, make, message):
    (tmp_path / "p").write_bytes(pickle.dumps(make(tmp_path)))
    with pytest.raises(ValueError, match=f"arrays, bytes, numbers and lists only: .*({message})"):
        read_pickle(tmp_path / "p")
    assert not (tmp_path / "touched").exists()


def test_truncated_pickles_are_named(tmp_path):
    raw = pickle.dumps({"data": PLANES})
    for size in (0, 1, 40, len(raw) // 2, len(raw) - 1):
        (tmp_path / "p").write_bytes(raw[:size])
        with pytest.raises(ValueError, match="p: expected a pickle of"):
            read_pickle(tmp_path / "p")


def test_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000), y=np.ones(2))
    assert read_npz(tmp_path / "a.npz")["x"].tolist() == list(range(1000))
    raw = (tmp_path / "a.npz").read_bytes()
    np.savez(tmp_path / "object.npz", x=np.array([{}], object))
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "short.npz").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "bent.npz").write_bytes(raw[:100] + bytes(100) + raw[200:])
    for name in ("object.npz", "one.npy", "empty.npz", "text.npz", "short.npz", "bent.npz"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole npz file of plain arrays"):
            read_npz(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"a.npz: expected x_train and y_train, .* got \['x', 'y'\]"):
        cifar(tmp_path / "a.npz")


def test_normalised_images():
    expected = (IMAGES / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    for images in (IMAGES, jnp.asarray(IMAGES)):
        result = normalised(images, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        assert isinstance(result, type(images))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)
    mean, std = channel_statistics(IMAGES)
    whitened = normalised(IMAGES, mean, std)
    np.testing.assert_allclose(whitened.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(whitened.std((0, 1, 2)), 1, atol=1e-5)
    assert normalised(IMAGES[0], 0.5, 0.5).shape == (32, 32, 3)


def test_floats_are_full_scale_already():
    """In [0, 1] they are not divided again, and their statistics are those of the bytes."""
    mean, std = channel_statistics(IMAGES)
    floats = (IMAGES / 255).astype(np.float32)
    np.testing.assert_allclose(channel_statistics(floats), (mean, std), rtol=1e-5)
    for images in (floats, jnp.asarray(floats), IMAGES / 255):
        np.testing.assert_allclose(normalised(images, mean, std), normalised(IMAGES, mean, std), atol=1e-5)


def test_grey_images_need_no_channel_for_one_mean():
    grey = IMAGES[..., 0]
    np.testing.assert_array_equal(normalised(grey, 0.5, [0.25]), normalised(grey[..., None], [0.5], [0.25])[..., 0])
    assert jax.jit(lambda images: normalised(images, 0.5, 0.5))(grey).dtype == np.float32


COLUMNS = [0.5] * 32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalised(IMAGES.astype(np.float32), 0.5, 0.5), "expected floats from 0 to 1, got 0 to 255; divide"),
        (lambda: normalised(-(IMAGES / 255), 0.5, 0.5), "expected floats from 0 to 1, got -1 to"),
        (lambda: normalised(IMAGES / np.nan, 0.5, 0.5), "expected floats from 0 to 1, got nan"),
        (lambda: normalised(IMAGES.astype(np.int32), 0.5, 0.5), "of uint8, or of floats from 0 to 1, got int32"),
        (lambda: jax.jit(lambda x: normalised(x, 0.5, 0.5))(IMAGES / 255), "uint8 in compiled code, got float32"),
        (lambda: normalised(IMAGES[..., 0], COLUMNS, COLUMNS), r"got \[3, 32, 32\]; give grey .* images\[..., None\]"),
        (lambda: channel_statistics(IMAGES[..., 0]), r"got \[3, 32, 32\]; give grey images their channel"),
        (lambda: channel_statistics(IMAGES[..., 0] / 255), "give grey images their channel"),
        (lambda: normalised(IMAGES, [0.1, 0.2], 0.5), r"one for each of 3 channels, got \[2\]"),
        (lambda: normalised(IMAGES, 0.5, 0.0), "expected a finite mean and std > 0"),
        (lambda: channel_statistics(IMAGES[:0]), r"at least one image, got \[0, 32, 32, 3\]"),
    ],
)
def test_ambiguous_images_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0, 2.0], "expected whole numbers, got 0.5 for sample 0"),
        ([0.0, 1.7, 2.0], "expected whole numbers, got 1.7 for sample 1"),
        ([0.0, np.nan, 2.0], "expected whole numbers, got nan for sample 1"),
        ([0, 1, 2**31], "expected numbers that int32 holds, got 2147483648"),
    ],
)
def test_files_whose_labels_are_no_classes_are_refused(tmp_path, labels, message):
    """In an npz file, in a pickle and in idx files: none is cut off to an integer."""
    labels = np.array(labels)
    arrays = {"x_train": IMAGES, "y_train": labels, "x_test": IMAGES, "y_test": FINE}
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(ValueError, match=f"c.npz: y_train: {message}"):
        cifar(tmp_path / "c.npz")
    for name in ("train", "test"):
        python3({"data": PLANES, "fine_labels": labels}, tmp_path / name)
    with pytest.raises(ValueError, match=f"train: labels: {message}"):
        cifar(tmp_path)
    if labels.dtype == float:
        for prefix in ("train", "t10k"):
            (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(IMAGES[..., 0], 8))
            (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels.astype(">f8"), 14))
        with pytest.raises(ValueError, match=f"train-labels-idx1-ubyte: {message}"):
            mnist(tmp_path)


def test_whole_labels_of_any_type_are_read(tmp_path):
    for labels in (FINE.astype(np.float64), FINE.astype(np.uint64)):
        np.savez(tmp_path / "c.npz", x_train=IMAGES, y_train=labels, x_test=IMAGES, y_test=labels)
        result = cifar(tmp_path / "c.npz")["test"]["y"]
        assert (result.tolist(), result.dtype) == (FINE.tolist(), np.int32)


def test_roles_are_read_from_a_file(tmp_path):
    (tmp_path / "roles.jsonl").write_text('{"user": "p:A", "text": "hello"}\n')
    assert [role.user for role in read_roles(tmp_path / "roles.jsonl")] == ["p:A"]
