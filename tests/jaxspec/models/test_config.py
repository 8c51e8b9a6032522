"""Sizes of a decoder that no program could compute with are refused."""

from dataclasses import replace

import pytest

from jaxspec.models.config import Attention, Ends
from tests.support.jaxspec import models


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"width": 0}, "expected width >= 1, got 0"),
        ({"attention": Attention(window=0)}, "expected window >= 1, got 0"),
        ({"ends": Ends(positions=0)}, "expected positions >= 1, got 0"),
        ({"ends": Ends(embedding_size=-1)}, "expected embedding_size >= 1, got -1"),
    ],
)
def test_sizes_below_one_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        replace(models.TARGET, **parts)
