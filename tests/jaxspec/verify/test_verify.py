"""Sample and match against a Python loop."""

from itertools import product

import numpy as np
import pytest

from jaxspec.verify.verdict import longest_match


def loop(window, choices, position):
    accepted = 0
    while accepted < len(window) and window[accepted] == choices[accepted]:
        accepted += 1
    return accepted, choices[accepted], position + accepted + 1


def check(window, choices, position):
    found = longest_match(np.asarray(window, np.int32), np.asarray(choices, np.int32), np.asarray(position, np.int32))
    expected = [loop(*row) for row in zip(window, choices, position, strict=True)]
    np.testing.assert_array_equal(np.stack(found, axis=1), expected)


def test_match_on_all_windows_of_three_bits():
    table = [(bits[:3], bits[3:]) for bits in product((0, 1), repeat=7)]
    check([row[0] for row in table], [row[1] for row in table], range(len(table)))


@pytest.mark.parametrize("window", [1, 4, 8])
def test_match_on_random_windows(window):
    random = np.random.default_rng(window)
    choices = random.integers(5, size=(64, window + 1))
    drafted = np.where(random.random((64, window)) < 0.8, choices[:, :-1], random.integers(5, size=(64, window)))
    check(drafted.tolist(), choices.tolist(), random.integers(100, size=64).tolist())


@pytest.mark.parametrize(
    ("window", "choices", "expected"),
    [
        ([5, 6, 7], [5, 6, 7, 8], (3, 8, 14)),
        ([5, 6, 7], [4, 6, 7, 8], (0, 4, 11)),
        ([5, 6, 7], [5, 9, 7, 8], (1, 9, 12)),
    ],
    ids=["bonus after all", "correction of the first", "later agreement does not count"],
)
def test_match_examples(window, choices, expected):
    verdict = longest_match(np.array([window], np.int32), np.array([choices], np.int32), np.array([10], np.int32))
    assert tuple(int(part[0]) for part in verdict) == expected
    assert all(part.dtype == np.int32 for part in verdict)
