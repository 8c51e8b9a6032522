"""A draft of another kind, written in this file: a table of bigrams, corrected by one hidden state of the target."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafts import Branches, Draft, Drafter
from jaxspec.training import hidden_states, log_probabilities
from jaxspec.verify import Reads
from tests.support.jaxspec import models, pairs, policies

NET, PARAMS, _ = models.target()
TABLE = 3.0 * log_probabilities(NET, PARAMS, jnp.arange(models.VOCAB)[:, None])[:, :, 0].T
TAP = 0.01 * jax.random.normal(jax.random.key(5), (models.TARGET.width, models.VOCAB))


@dataclass(frozen=True)
class Bigrams(Drafter):
    """Logits after token u: table[u] + W·r, r (the state) the tap at the last token that the target has run."""

    reads: Reads

    def begin(self, params, request, features, capacity, scratch):
        return features.at(jnp.maximum(request.lengths - 2, 0)[:, None]).taps[0]

    def absorb(self, params, state, verified):
        return verified.features.at(verified.num_accepted[:, None]).taps[0]

    def foresee(self, params, state, verified, proposer):
        logits = params[0][verified.last.token[:, None]] + state @ params[1]
        return proposer.others(jnp.moveaxis(logits, -1, 0), verified.last.position[:, None] + 1), state

    def rollout(self, params, state, verified, roots, window, proposer, slots):
        early = verified.features is not None and verified.features.complete  # with the exit's message
        tap, tokens, drafted = verified.features.at(roots.accepted).taps[0] if early else state, roots.tokens, []
        for number in range(1, 1 + window):
            logits = jnp.moveaxis(params[0][tokens] + tap @ params[1], -1, 0)
            tokens, notes = proposer(logits, verified.starts(roots).position + number)
            proposer, drafted = proposer.after(tokens), [*drafted, (tokens, notes)]
        return Branches.of(drafted), state


@pytest.mark.parametrize(("name", "tap"), [("vanilla", 2), *((name, 2) for name in policies.POLICIES), ("mirror", 4)])
def test_it_writes_plain_decodings_tokens_after_reading_true_hidden_states(name, tap):
    draft, policy = Draft(Bigrams(Reads((tap,))), (TABLE, TAP)), policies.POLICIES.get(name, lambda kappa: None)(4)
    method = models.speculative(draft=draft) if name == "vanilla" else models.mirror(3, 4, draft=draft, policy=policy)
    for temperature in policies.TEMPERATURES:
        found = jaxspec.generate(method, pairs.PROMPTS[:3], 14, sampling=jaxspec.Sampling(temperature, seed=7))
        assert (found.stats.accepted > 0, found.tokens) == (True, policies.expected(3, temperature))
    state, texts = method.init(models.request(), 64), zip(models.PROMPTS, models.expected(), strict=True)
    streams = [hidden_states(NET, PARAMS, jnp.asarray([sum(text, [])]), (tap,))[0][:, 0] for text in texts]
    for _ in range(3):
        state, _ = method.step(state)
        own, last = jax.tree.leaves(state.draft)[0][:, 0], state.target.progress.position - 1
        np.testing.assert_allclose(own, [stream[:, at] for stream, at in zip(streams, last, strict=True)], atol=1e-4)
