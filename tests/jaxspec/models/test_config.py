"""Sizes of a decoder that no program could compute with are refused."""

from dataclasses import replace

import pytest

from jaxspec.models.config import Attention, Block, Ends, Tracks
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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"block": Block(parallel=True, norms="after")}, "expected parallel blocks that add to the residual stream"),
        ({"attention": Attention(norm_heads="together"), "tracks": Tracks(2)}, "norms of all heads together"),
        ({"attention": Attention(norm_heads="apart")}, "expected norm_heads of Attention to be"),
    ],
)
def test_what_no_layer_can_compute_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        replace(models.TARGET, **parts)
