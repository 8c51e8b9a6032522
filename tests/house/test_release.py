"""What earlier releases saved is loaded by this one: every value, and a run goes on from where it was."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxspec
from jaxfed import checkpoint
from jaxspec.loading.store import load_model
from tests.support import release
from tests.support.work import same

RELEASES = sorted(Path(__file__).parents[1].glob("data/release_*"))


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def folder(request, tmp_path):
    """A copy of what a release left, so that nothing is written there."""
    return shutil.copytree(request.param, tmp_path / "release")


def recorded(folder, name):
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def assert_recorded(tree, expected):
    found = release.named(tree)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_there_is_one():
    assert RELEASES


def test_every_kind_of_leaf_is_what_it_was(folder):
    assert checkpoint.manifest(folder / "leaves").metadata == {"made by": "jaxfed 0.1.0"}
    like = release.leaves()
    found = checkpoint.load(folder / "leaves", like=like)
    assert same(found, like)
    assert jax.tree.map(type, found["python"]) == jax.tree.map(type, like["python"])
    assert found["keys"].dtype == like["keys"].dtype
    assert checkpoint.load(folder / "leaves", part="numpy.0").tolist() == [0, 1, 2, 3]


def test_a_run_is_what_it_was_and_goes_on(folder, tmp_path):
    assert_recorded(checkpoint.load(folder / "run"), recorded(folder, "run"))
    checkpoint.verify(folder / "run")
    resumed, whole = release.run(folder / "run", 4), release.run(tmp_path / "whole", 4)
    assert checkpoint.steps(folder / "run")[0] == 2
    for found, expected in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["model", "draft"])
def test_a_model_is_what_it_was_and_decodes(folder, name):
    model = load_model(folder / name)
    assert_recorded(model.params, recorded(folder, name))
    expected = release.models()[name]
    assert model.network is expected.network
    if name == "model":
        assert model.text.stop == (2,)
        assert model.text.decode(model.text.encode(release.TEXT)) == release.TEXT
        found = jaxspec.generate(jaxspec.autoregressive(model), [release.TEXT], 5)
        assert found.tokens == jaxspec.generate(jaxspec.autoregressive(expected), [release.TEXT], 5).tokens
