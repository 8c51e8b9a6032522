"""Work killed at a random moment: every complete step is good, and the resumed work ends with the same result."""

import random

import pytest

from jaxfed import checkpoint
from tests.support.killing import kill_once
from tests.support.work import KINDS, same

#: Enough steps to be still at work when killed.
COUNTS = {"simulation": 20, "training": 30, "saving": 40}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_work_killed_at_a_random_moment_resumes_bit_for_bit(tmp_path, kind):
    """One kill here; ``make soak`` has many."""
    count, chance = COUNTS[kind], random.Random(kind)
    assert kill_once(kind, tmp_path, count, chance)
    complete = checkpoint.steps(tmp_path)
    assert 0 < complete[-1] < count
    for step in complete:
        checkpoint.verify(tmp_path, step)
    assert same(KINDS[kind](tmp_path, count), KINDS[kind](None, count))
