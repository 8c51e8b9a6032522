"""Every fallback with every policy, under every rule of acceptance."""

from functools import cache

import jaxspec
from jaxspec import Sampling
from jaxspec.methods import candidates, fallbacks
from jaxspec.verify import acceptance
from tests.support.jaxspec import models, pairs

FALLBACKS = {
    "full": fallbacks.Full(),
    "short": fallbacks.Short(2),
    "one": fallbacks.Short(1),
    "n-gram": fallbacks.NGram(1),
}
POLICIES = {
    "none": candidates.none(),
    "saguaro": candidates.saguaro(3, num_candidates=4),
    "mirror": candidates.mirror(2),
    "hybrid": candidates.hybrid(2, 2, num_candidates=4),
}
SAMPLED = Sampling(temperature=0.9, top_k=6, repetition_penalty=1.1, seed=5)
#: Drafted tokens matched greedily, or with the target's own noise; or tested by the ratio test, greedily and sampled.
MODES = ("greedy", "sampled", "ratio", "ratio sampled")


def decode(fallback, policy="none", prompts=models.PROMPTS, sampling=None, **options):
    options = {"policy": POLICIES[policy], "window": 4, "num_candidates": 4} | options
    return jaxspec.generate(models.mirror(fallback=fallback, **options), prompts, models.NEW_TOKENS, sampling=sampling)


@cache
def sampled():
    """Tokens of plain decoding."""
    method = jaxspec.autoregressive(models.target())
    return jaxspec.generate(method, pairs.PROMPTS, models.NEW_TOKENS, sampling=SAMPLED).tokens


def tokens_of(name, policy, mode):
    """Decoded and expected tokens; for the ratio test above temperature 0 only their numbers."""
    fallback, rule = FALLBACKS[name], acceptance.ratio(4)
    if mode == "greedy":
        return decode(fallback, policy).tokens, models.expected()
    if mode == "sampled":
        return decode(fallback, policy, pairs.PROMPTS, SAMPLED).tokens, sampled()
    if mode == "ratio":
        return decode(fallback, policy, acceptance=rule).tokens, models.expected()
    tokens = decode(fallback, policy, sampling=Sampling(0.8, seed=2), acceptance=rule).tokens
    return [len(row) for row in tokens], [models.NEW_TOKENS] * 2
