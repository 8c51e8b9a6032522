"""The product of policies, drafts, windows, candidates, exits and batches; and a few rows that cover all pairs."""

from functools import cache
from itertools import combinations, product

import jaxspec
from jaxspec import Sampling
from jaxspec.methods import candidates
from tests.support.jaxspec import models, pairs

#: From κ to a policy.
POLICIES = {
    "none": lambda kappa: candidates.none(),
    "pearl": lambda kappa: candidates.pearl(),
    "saguaro": lambda kappa: candidates.saguaro(6, num_candidates=kappa),
    "ahead": lambda kappa: candidates.ahead(6, num_candidates=kappa),
    "mirror": lambda kappa: candidates.mirror(),
    "mirror under a budget": lambda kappa: candidates.mirror(5, num_candidates=kappa),
    "hybrid": lambda kappa: candidates.hybrid(3, 3, num_candidates=kappa),
}
DRAFTS = {"plain": models.draft, "streaming": models.streaming}
AXES = tuple(POLICIES), tuple(DRAFTS), (1, 3, 7), (1, 4, 8), (1, 2, models.TARGET.num_layers), (1, 3)
TEMPERATURES = 0.0, 1.0
ROWS = list(product(*AXES))


def _pairs(row):
    return set(combinations(enumerate(row), 2))


def covering(rows=ROWS):
    """Rows, chosen greedily, that cover any two values of any two axes."""
    missing, chosen = set().union(*map(_pairs, rows)), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(_pairs(row) & missing)))
        missing -= _pairs(chosen[-1])
    return chosen


@cache
def expected(batch, temperature):
    """Plain decoding."""
    method = jaxspec.autoregressive(models.target())
    sampling = Sampling(temperature, seed=7)
    return jaxspec.generate(method, pairs.PROMPTS[:batch], models.NEW_TOKENS, sampling=sampling).tokens


def decode(row, temperature):
    """The tokens of a row."""
    policy, draft, window, kappa, exit_layer, batch = row
    chosen = {"policy": POLICIES[policy](kappa), "draft": DRAFTS[draft]()}
    method = models.mirror(window, kappa, exit_layer, **chosen)
    sampling = Sampling(temperature, seed=7)
    return jaxspec.generate(method, pairs.PROMPTS[:batch], models.NEW_TOKENS, sampling=sampling).tokens
