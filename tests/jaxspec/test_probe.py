"""The probe by hand, and against what decoding with all branches then reuses."""

import numpy as np
import pytest

import jaxspec
from jaxspec.probe import probe, step_ends
from tests.jaxspec import models, pairs

KAPPAS = (1, 2, 4, 8)
NEW = 48


@pytest.fixture(scope="module")
def text():
    """Prompts of three tokens and the target's own continuation."""
    prompts = np.asarray([(prompt * 3)[:3] for prompt in pairs.PROMPTS], np.int32)
    new = jaxspec.generate(jaxspec.autoregressive(models.target()), prompts.tolist(), NEW).tokens
    return np.concatenate([prompts, np.asarray(new, np.int32)], axis=1)


@pytest.fixture(scope="module")
def found(text):
    return probe(models.target(), models.draft(), text, 3, window=3, num_candidates=KAPPAS)


def test_ends_of_steps_by_hand():
    agrees = np.asarray([[True, True, False, True, True, True, True, False, False, True]])
    assert step_ends(agrees, 3) == [(0, 2, 2), (0, 6, 3)]
    assert step_ends(~agrees, 2) == [(0, 0, 0), (0, 1, 0), (0, 3, 1), (0, 4, 0), (0, 5, 0), (0, 6, 0), (0, 9, 2)]


def test_the_last_layer_is_the_oracle(found):
    oracle = found[-1]
    assert oracle.contained == oracle.at_correction == oracle.foreseen == dict.fromkeys(KAPPAS, 1.0)


def test_more_candidates_and_later_exits_know_more(found):
    for knowledge in found:
        for shares in knowledge[1:]:
            assert sorted(shares.values()) == [shares[kappa] for kappa in KAPPAS]
    assert found[0].contained[1] < found[-1].contained[1]


def test_mass_is_between_the_best_token_s_and_one(found):
    for knowledge in found:
        assert all(0 < mass <= 1 + 1e-6 for mass in knowledge.mass.values())
    assert found[-1].mass[8] > 0.9


@pytest.mark.parametrize(("layer", "kappa"), [(1, 1), (2, 2), (3, 4)])
def test_fallbacks_are_foretold(found, text, layer, kappa):
    """FF = 1 − Ω′: what decoding with all branches reuses, within sampling error, without looking at its counter."""
    method = models.mirror(3, kappa, layer)
    stats = jaxspec.generate(method, text[:, :3].tolist(), NEW).stats
    expected = next(row for row in found if row.layer == layer).foreseen[kappa]
    error = 3 * np.sqrt(max(expected * (1 - expected), 0.01) / stats.needed)
    assert stats.reuse_rate == pytest.approx(expected, abs=error)


def test_bad_input(text):
    with pytest.raises(ValueError, match=r"expected layers from 1 to 4, got \(5,\)"):
        probe(models.target(), models.draft(), text, 3, layers=[5])
    with pytest.raises(ValueError, match="expected more than 7 tokens behind the prompts, got 2"):
        probe(models.target(), models.draft(), text, text.shape[1] - 2)
