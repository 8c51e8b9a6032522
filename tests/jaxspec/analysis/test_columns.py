"""Single and doubled columns, timed in turns; only a TPU makes two programs of them."""

import os

import pytest

from jaxspec.analysis.columns import ColumnTimes, column_times
from jaxspec.models.products import SWITCH
from tests.support.jaxspec import models


@pytest.mark.parametrize("before", [None, "0"])
def test_both_are_timed_and_the_switch_is_left_as_it_was(monkeypatch, before):
    monkeypatch.delenv(SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    times = column_times(models.target(), models.meshes().target, runs=3, capacity=64)
    assert min(times) > 0
    assert os.environ.get(SWITCH) == before


def test_advice_says_which_is_faster():
    assert "2.00 times as fast" in ColumnTimes(4e-3, 2e-3).advice
    assert f"1.50 times as slow here: set {SWITCH}=0" in ColumnTimes(2e-3, 3e-3).advice
