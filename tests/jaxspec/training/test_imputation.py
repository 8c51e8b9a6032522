"""Hidden states above an exit, guessed from that at the exit: NumPy's least squares, and plain decoding's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import Sampling
from jaxspec.drafts import init_draft
from jaxspec.methods import candidates
from jaxspec.training import fit_imputation, hidden_states
from tests.support.jaxspec import models, pairs, policies

TARGET = models.target()
TOKENS = np.random.default_rng(0).integers(models.VOCAB, size=(12, 20)).astype(np.int32)
EXIT = 2


def late_draft():
    return init_draft("eagle3", TARGET, taps=(1, 2, 4), key=jax.random.key(3))


def test_maps_are_those_of_least_squares():
    made = fit_imputation(late_draft(), TARGET, EXIT, TOKENS, ridge=1e-9, batch_size=5)
    early, late = hidden_states(TARGET.network, TARGET.params, jnp.asarray(TOKENS), (EXIT,))
    x = np.concatenate([early.reshape(16, -1), np.ones((1, TOKENS.size))]).T.astype(np.float64)
    expected = np.linalg.lstsq(x, np.asarray(late, np.float64).reshape(16, -1).T, rcond=None)[0].T
    ((matrix, offset),) = made.params["imputation"]
    np.testing.assert_allclose(matrix, expected[:, :-1], atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(offset, expected[:, -1], atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["mirror", "hybrid", "saguaro"])
def test_tokens_are_those_of_plain_decoding(name):
    made = fit_imputation(late_draft(), TARGET, EXIT, TOKENS)
    method = models.mirror(3, 4, EXIT, draft=made, policy=policies.POLICIES[name](4))
    for temperature in policies.TEMPERATURES:
        found = jaxspec.generate(method, pairs.PROMPTS[:3], 14, sampling=Sampling(temperature, seed=7))
        assert found.tokens == policies.expected(3, temperature)


def test_perfect_guesses_draft_what_true_features_do():
    """The tap above the exit is a linear function of that at it where the layers between add nothing."""
    silent = jax.tree.map(jnp.zeros_like, TARGET.params["layers"][EXIT:])
    for old, new in zip(TARGET.params["layers"][EXIT:], silent, strict=True):
        new["attention_norm"], new["mlp_norm"] = old["attention_norm"], old["mlp_norm"]
    target = TARGET._replace(params={**TARGET.params, "layers": [*TARGET.params["layers"][:EXIT], *silent]})
    draft = init_draft("eagle3", target, taps=(1, 2, 4), key=jax.random.key(3))
    made = fit_imputation(draft, target, EXIT, TOKENS, ridge=1e-9)
    options = {"target": target, "policy": candidates.mirror()}
    chain = jaxspec.generate(jaxspec.speculative(target, draft, 3), pairs.PROMPTS[:3], 14, temperature=1.0)
    guessed = jaxspec.generate(models.mirror(3, 4, EXIT, draft=made, **options), pairs.PROMPTS[:3], 14, temperature=1.0)
    assert guessed.tokens == chain.tokens
    assert guessed.stats.accepted == chain.stats.accepted


def test_a_draft_below_the_exit_needs_no_guesses():
    with pytest.raises(ValueError, match="a draft with all taps up to the exit needs no guesses"):
        fit_imputation(init_draft("eagle3", TARGET, taps=(0, 1, 2)), TARGET, EXIT, TOKENS)
