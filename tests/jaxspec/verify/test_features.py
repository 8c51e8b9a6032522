"""Hidden states that a draft reads: those of one pass over the text, chunk by chunk; and what a target refuses."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models import Tracks
from jaxspec.training import hidden_states
from jaxspec.verify import Features, Reads
from jaxspec.verify.features import Reader, check_reads, joined
from jaxspec.verify.target import prefill
from tests.support.jaxspec import models, own_models

NET, PARAMS, _ = models.target()
PROMPT = (np.arange(300) * 7 % models.VOCAB).tolist()


@pytest.mark.parametrize("size", [300, 512], ids=["one pass", "chunks"])
def test_prompts_give_true_hidden_states(size):
    prompt = PROMPT[:20] if size == 300 else PROMPT
    request, reads = models.request([prompt], size=32 if size == 300 else 512), Reads((0, 2, 4), final=True)
    _, features = prefill(NET, PARAMS, request, 600, Reader(reads))
    tokens = jnp.asarray([prompt])
    streams = [NET.embed(PARAMS, tokens), *hidden_states(NET, PARAMS, tokens, (2,))]
    # Hidden states reach 50, and the first layer, four times as strong as others, magnifies rounding.
    for found, expected in zip(features.taps, streams, strict=True):
        np.testing.assert_allclose(found[0, : len(prompt)].T, expected[:, 0], atol=0.03)
    np.testing.assert_allclose(features.final[0, : len(prompt)].T, NET.final(PARAMS, streams[2])[:, 0], atol=0.03)


def test_nothing_is_kept_where_nothing_is_read():
    assert prefill(NET, PARAMS, models.request(), 64)[1] is None


def test_two_messages_are_joined():
    one, other = Features((1, None), None), Features((None, 2), 3)
    assert joined(one, other) == Features((1, 2), 3)
    assert joined(None, other) is other
    assert not one.complete


@pytest.mark.parametrize(
    ("network", "reads", "message"),
    [
        (NET, Reads((2, 1)), "expected ascending taps from 0 to 4"),
        (NET, Reads((5,)), "expected ascending taps from 0 to 4"),
        (replace(NET, config=replace(models.TARGET, tracks=Tracks(2))), Reads((1,)), "where the target's tracks meet"),
        (own_models.bigram().network, Reads(final=True), "expected a target whose Network has final="),
    ],
)
def test_a_target_without_these_hidden_states(network, reads, message):
    with pytest.raises(ValueError, match=message):
        check_reads(network, reads)
