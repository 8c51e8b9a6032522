"""What crosses between two meshes in a step: its bytes by hand, and those of a real step."""

from functools import cache

import jax
import pytest

from jaxspec.analysis.crossing import StepBytes, step_bytes
from jaxspec.devices.channel import LocalChannel
from jaxspec.methods import DecodeSpec, candidates
from tests.support.jaxspec import models
from tests.support.jaxspec import reading_rows as rows

BATCH, KAPPA, INT, FLOAT = 2, 2, 4, 4
PLACES = BATCH * (rows.WINDOW + 1)
#: γ+1 positions of κ candidates with scores, and the log-probabilities of γ drafted tokens.
CANDIDATES = PLACES * KAPPA * (INT + FLOAT) + BATCH * rows.WINDOW * FLOAT
#: A, the next token and its position.
VERDICT = 3 * BATCH * INT
WINDOW = BATCH * rows.WINDOW * INT
#: Numbers of a fused feature: the draft's width; of what is not fused, the target's, for each tap.
FUSED = rows.NARROW.width
SPEC = DecodeSpec(rows.WINDOW, candidates.mirror(4), KAPPA, rows.EXIT)
EXPECTED = {
    "plain": (SPEC, StepBytes(CANDIDATES, 0, VERDICT, 0, WINDOW)),
    "eagle3 early": (SPEC, StepBytes(CANDIDATES, PLACES * FUSED * FLOAT, VERDICT, 0, WINDOW)),
    "medusa": (SPEC, StepBytes(CANDIDATES, 0, VERDICT, PLACES * models.TARGET.width * FLOAT, WINDOW)),
    "eagle3 early, without an exit": (
        DecodeSpec(rows.WINDOW, candidates.saguaro(4, num_candidates=4)),
        StepBytes(0, 0, VERDICT, PLACES * FUSED * FLOAT, WINDOW),
    ),
}


@cache
def draft(name):
    return models.draft() if name == "plain" else rows.draft(name.split(",")[0])


@pytest.mark.parametrize("name", EXPECTED)
def test_bytes_are_those_of_the_arrays(name, monkeypatch):
    """By hand, and of what the channel is given in a step."""
    spec, expected = EXPECTED[name]
    assert step_bytes(models.target(), draft(name), spec, BATCH) == expected
    method = spec.build(models.target(), draft(name), placement=models.meshes())
    state, sent = method.init(models.request(), 64), {"to_draft": 0, "to_target": 0}
    for way in sent:
        monkeypatch.setattr(LocalChannel, way, counting(sent, way))
    method.step(state)
    assert sent == {"to_draft": sum(expected[:4]), "to_target": expected.window}


def counting(sent, way):
    original = getattr(LocalChannel, way)

    def send(self, value, shared=None):
        sent[way] += sum(leaf.nbytes for leaf in jax.tree.leaves(value))
        return original(self, value, shared)

    return send


def test_other_methods_send_nothing():
    with pytest.raises(ValueError, match="expected settings of mirror decoding, with a policy and a window, got spec"):
        step_bytes(models.target(), models.draft(), DecodeSpec(3))
