"""The pipeline of Mirror-SD against the one-page reference: every window, branch, verdict and reuse decision."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.verify.sampling import SamplingArrays, gumbel
from tests.support import mirror_reference
from tests.support.jaxspec import models
from tests.support.numpy_decoder import Decoder

#: A batch of four: prompt, temperature and seed of each sequence.
PROMPTS, TEMPERATURES, SEEDS = models.PROMPTS * 2, (0.0, 0.0, 1.0, 1.0), (5, 17, 5, 17)
CAPACITY = 256


def decoder(model):
    """The same model in NumPy."""
    return Decoder(model.network.config, jax.tree.map(np.float64, model.params))


@cache
def reference(sizes, sequence):
    """The tokens and steps of one sequence."""
    temperature, seed = TEMPERATURES[sequence], jnp.asarray(SEEDS[sequence : sequence + 1], jnp.uint32)
    noise = np.asarray(gumbel(seed, jnp.arange(64)[None], models.VOCAB))[:, 0].T

    def scores(logits, position):
        return logits / temperature + noise[position] if temperature else logits

    pair = decoder(models.target()), decoder(models.draft())
    return mirror_reference.mirror_decode(*pair, PROMPTS[sequence], models.NEW_TOKENS, sizes, scores)


def sampling():
    """How each sequence is drawn: temperature and seed, and no filter."""
    constant = lambda value, kind: jnp.full(len(SEEDS), value, kind)  # noqa: E731
    seeds, temperatures = jnp.asarray(SEEDS, jnp.uint32), jnp.asarray(TEMPERATURES)
    filters = constant(0, jnp.int32), constant(1.0, jnp.float32), constant(0.0, jnp.float32)
    return SamplingArrays(seeds, temperatures, *filters, constant(1.0, jnp.float32))


def pipeline(sizes):
    """The tokens of every sequence, and its steps until it has all of them."""
    method, request = models.mirror(*sizes), models.request(PROMPTS)._replace(sampling=sampling())
    state, tokens, steps = method.init(request, CAPACITY), [[] for _ in SEEDS], [[] for _ in SEEDS]
    while min(map(len, tokens)) < models.NEW_TOKENS:
        windows, watched = np.asarray(state.window.tokens), {}
        state, info = method.step(state, lambda lane, name, outputs, watched=watched: watched.update({name: outputs}))
        roots, branches = jax.device_get((watched["rollout"].roots, watched["rollout"].branches.tokens))
        for row in np.flatnonzero(info.num_emitted):
            starts = zip(roots.accepted[row].tolist(), roots.tokens[row].tolist(), strict=True)
            rolled = dict(zip(starts, branches[row].tolist(), strict=True))
            accepted, reused = int(info.num_verified[row]), bool(np.asarray(info.reused)[row])
            outcome = accepted, int(info.tokens[row, accepted]), reused
            tokens[row].extend(info.tokens[row, : info.num_emitted[row]].tolist())
            steps[row].append(mirror_reference.Step(windows[row].tolist(), rolled, *outcome))
    return tokens, steps


@pytest.mark.parametrize(
    "sizes", [(3, 1, 2), *(pytest.param(each, marks=pytest.mark.slow) for each in [(4, 3, 1), (1, 1, 4)])], ids=str
)
def test_every_step_is_that_of_the_reference(sizes):
    tokens, steps = pipeline(sizes)
    for sequence in range(len(SEEDS)):
        expected_tokens, expected_steps = reference(sizes, sequence)
        assert tokens[sequence] == expected_tokens
        assert steps[sequence] == expected_steps


def test_the_reference_writes_the_targets_text_and_meets_every_case():
    """Otherwise the comparison would cover little."""
    runs = [reference((3, 1, 2), sequence) for sequence in range(len(SEEDS))]
    assert [tokens for tokens, _ in runs[:2]] == models.expected()
    steps = sum((steps for _, steps in runs), [])
    assert {step.reused for step in steps} == {True, False}
    assert {step.num_accepted for step in steps} == {0, 1, 2, 3}
    assert all(len(step.branches) == 4 for step in steps)
