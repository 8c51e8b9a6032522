"""One value describes every method: what it builds, compares and prints."""

import pickle

import pytest

import jaxspec
from jaxspec.drafts import trees
from jaxspec.methods import DecodeSpec, candidates, fallbacks
from tests.support.jaxspec import models

SPECS = {
    "autoregressive": DecodeSpec(),
    "speculative": DecodeSpec(3),
    "mirror": DecodeSpec(3, models.ALL_BRANCHES, 2, 2, fallback=fallbacks.Short(2)),
}


@pytest.mark.parametrize("name", SPECS)
def test_every_method_is_built(name):
    spec = SPECS[name]
    method = spec.build(models.target(), models.draft(), placement=models.meshes())
    assert (spec.method, method.window) == (name, spec.window)
    assert jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()


@pytest.mark.parametrize("name", ["speculative", "mirror"])
def test_a_window_needs_a_draft(name):
    with pytest.raises(ValueError, match=f"expected a draft for {name} decoding, got none; pass a smaller model"):
        SPECS[name].build(models.target())


def test_a_spec_is_a_value():
    """Equal without its label, hashable, and the same after pickling."""
    spec = DecodeSpec(7, candidates.hybrid(2, 2), label="hybrid(2, 2)")
    assert spec == pickle.loads(pickle.dumps(spec)) == DecodeSpec(7, candidates.hybrid(2, 2))
    assert len({spec, DecodeSpec(7, candidates.hybrid(2, 2)), DecodeSpec(7)}) == 2


def test_a_spec_is_printed_by_its_settings():
    assert [str(spec) for spec in (DecodeSpec(), DecodeSpec(5))] == ["autoregressive", "speculative, window 5"]
    assert str(DecodeSpec(7, candidates.mirror(4), 8, 5)) == "mirror, window 7, 8 candidates at exit 5"
    assert str(DecodeSpec(7, candidates.mirror(), label="mirror(all)")) == (
        "mirror(all), window 7, 8 candidates at exit N/2"
    )


def test_a_tree_is_speculative_decoding_whatever_the_window():
    shape = trees.static((2, 1))
    assert [DecodeSpec(window, tree=shape).method for window in (0, 3)] == ["speculative"] * 2
    assert str(DecodeSpec(tree=shape)) == "speculative, tree of depth 2"
    with pytest.raises(ValueError, match="expected a tree or a policy, got both"):
        DecodeSpec(3, candidates.mirror(), tree=shape)
    with pytest.raises(ValueError, match=r"expected a tree, such as .*static\(\(4, 2, 1\)\), got \(2, 1\)"):
        DecodeSpec(tree=(2, 1))
