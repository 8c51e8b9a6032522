"""This version loads what earlier releases saved: every value is equal, and a federated run continues."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxspec
from jaxfed import checkpoint
from jaxspec.loading.store import load_model
from tests.support import release
from tests.support.work import same

RELEASES = sorted(Path(__file__).parents[1].glob("data/release_*.tar.xz"))


@pytest.fixture(params=RELEASES, ids=lambda archive: archive.name.split(".")[0])
def folder(request, tmp_path):
    """What a release left, unpacked."""
    return release.unpack(request.param, tmp_path / "release")


def recorded(folder, name):
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def assert_recorded(tree, expected):
    loaded = release.named(tree)
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype, name
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)


def test_there_is_a_release():
    assert RELEASES


def test_every_kind_of_leaf_is_loaded(folder):
    assert checkpoint.manifest(folder / "leaves").metadata == {"made by": "jaxfed 0.1.0"}
    like = release.leaves()
    loaded = checkpoint.load(folder / "leaves", like=like)
    assert same(loaded, like)
    assert jax.tree.map(type, loaded["python"]) == jax.tree.map(type, like["python"])
    assert loaded["keys"].dtype == like["keys"].dtype
    assert checkpoint.load(folder / "leaves", part="numpy.0").tolist() == [0, 1, 2, 3]


def test_a_run_is_loaded_and_continues(folder, tmp_path):
    assert_recorded(checkpoint.load(folder / "run"), recorded(folder, "run"))
    checkpoint.verify(folder / "run")
    resumed, whole = release.run(folder / "run", 4), release.run(tmp_path / "whole", 4)
    assert checkpoint.steps(folder / "run")[0] == 2
    for leaf, expected in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["model", "draft"])
def test_a_model_is_loaded_and_decodes(folder, name):
    model = load_model(folder / name)
    assert_recorded(model.params, recorded(folder, name))
    expected = release.models()[name]
    assert model.network is expected.network
    if name == "model":
        assert model.text.stop == (2,)
        assert model.text.decode(model.text.encode(release.TEXT)) == release.TEXT
        decoded = jaxspec.generate(jaxspec.autoregressive(model), [release.TEXT], 5)
        assert decoded.tokens == jaxspec.generate(jaxspec.autoregressive(expected), [release.TEXT], 5).tokens
