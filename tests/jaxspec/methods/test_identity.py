"""Lossless: speculative and mirror decoding give the tokens of plain decoding, whatever the settings.

Under ``match`` the very tokens, at any temperature; under ``ratio`` their law.
"""

from functools import cache, partial
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import Sampling
from jaxspec.generation.requests import request_of
from jaxspec.methods import candidates
from jaxspec.training import log_probabilities
from jaxspec.verify import acceptance
from jaxspec.verify.exits import init_affine_lens
from tests.jaxspec.verify.test_acceptance import fits
from tests.jaxspec.verify.test_sampling import softmax, sorted_filter
from tests.support.jaxspec import models, pairs

WINDOWS, EXITS = range(1, 9), range(1, models.TARGET.num_layers + 1)
#: Of windows and of κ; `make matrix` has all eight.
SOME = (1, 2, 3, 6, 8)
#: Any two of them meet, and every exit layer meets each.
COVERING = [
    (window, kappa, 1 + (row + column) % len(EXITS))
    for (row, window), (column, kappa) in product(enumerate(SOME), enumerate(SOME))
]
DIAGONAL = [(1, 1, 4), (2, 3, 1), (3, 2, 2), (4, 8, 3), (5, 4, 1), (8, 1, 2)]

FAMILY_WINDOWS = (1, 3, 8)
#: Every family meets three windows; batches and methods are so chosen that any two values of any two axes meet.
FAMILY_ROWS = [
    ("mirror" if (row + column) % 3 == 0 else "speculative", name, pairs.BATCHES[(row + 2 * column) % 3], window)
    for (row, name), (column, window) in product(enumerate(pairs.FAMILIES), enumerate(FAMILY_WINDOWS))
]
QUICK_ROWS = [("mirror", "gemma2", 1, 8), ("speculative", "mistral", 3, 3)]

BUILDERS = [models.mirror, pytest.param(models.speculative, marks=pytest.mark.slow)]


def decode(method, prompts=models.PROMPTS, new_tokens=models.NEW_TOKENS):
    return jaxspec.generate(method, prompts, new_tokens)


def test_autoregressive_is_greedy_decoding_without_a_cache():
    assert decode(jaxspec.autoregressive(models.target())).tokens == models.expected()


def test_the_tiny_pair_says_something():
    """Otherwise identity would show little: lively text, acceptance neither nothing nor everything."""
    assert all(len(set(row)) > 3 for row in models.expected())
    assert 0.2 < decode(models.speculative()).stats.accepted_length < 2.5


@pytest.mark.parametrize("window", [*WINDOWS[:3], *(pytest.param(w, marks=pytest.mark.slow) for w in WINDOWS[3:])])
def test_speculative(window):
    assert decode(models.speculative(window)).tokens == models.expected()


def test_the_covering_array_holds_every_pair_of_values():
    axes = (SOME, SOME, EXITS)
    for first, second in combinations(range(3), 2):
        assert {(row[first], row[second]) for row in COVERING} == set(product(axes[first], axes[second]))


@pytest.mark.parametrize(("window", "kappa", "exit_layer"), DIAGONAL)
def test_mirror(window, kappa, exit_layer):
    assert decode(models.mirror(window, kappa, exit_layer)).tokens == models.expected()


@pytest.mark.slow
@pytest.mark.parametrize(("window", "kappa", "exit_layer"), COVERING)
def test_mirror_over_the_covering_array(window, kappa, exit_layer):
    assert decode(models.mirror(window, kappa, exit_layer)).tokens == models.expected()


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(("window", "kappa", "exit_layer"), DIAGONAL)
def test_mirror_compiled_as_users_do(window, kappa, exit_layer):
    expected = decode(jaxspec.autoregressive(models.target())).tokens
    assert decode(models.speculative(window)).tokens == expected
    assert decode(models.mirror(window, kappa, exit_layer)).tokens == expected


@pytest.mark.parametrize("budget", [3, *(pytest.param(budget, marks=pytest.mark.slow) for budget in (1, 100))])
def test_mirror_under_a_branch_budget(budget):
    assert decode(models.mirror(policy=candidates.mirror(budget))).tokens == models.expected()


def test_a_larger_budget_is_reused_more_often():
    few, many = (decode(models.mirror(policy=candidates.mirror(budget))).stats.reuse_rate for budget in (1, 3))
    assert few < many


@pytest.mark.parametrize("window", [1, 3])
def test_an_oracle_exit_is_always_reused(window):
    """At ℓₑ = N and κ = 1 the next window has been rolled out after every step that needs one."""
    result = decode(models.mirror(window, 1, models.TARGET.num_layers))
    assert result.tokens == models.expected()
    assert result.stats.needed > 4
    assert result.stats.reuse_rate == 1.0


def test_an_oracle_exit_is_always_reused_when_tokens_are_drawn():
    """It sees the target's noise, so that its top-1 is the very token that the target draws."""
    for temperature in (0.7, 1.0):
        oracle = models.mirror(3, 1, models.TARGET.num_layers)
        result = jaxspec.generate(oracle, models.PROMPTS, models.NEW_TOKENS, sampling=Sampling(temperature, seed=4))
        assert result.stats.needed > 4
        assert result.stats.reuse_rate == 1.0


def test_a_poor_exit_is_not_always_reused():
    assert decode(models.mirror(3, 1, 1)).stats.reuse_rate < 1.0


def test_any_exit_head_gives_the_same_tokens():
    lens = init_affine_lens(models.TARGET.width, 2, jax.random.key(0))
    lens = lens._replace(up=lens.up + 3.0, bias=lens.bias - 1.0)
    plain, turned = decode(models.mirror()), decode(models.mirror(exit=lens))
    assert plain.tokens == turned.tokens == models.expected()
    assert turned.stats.reused != plain.stats.reused


@pytest.mark.parametrize("build", [models.speculative, models.mirror])
def test_a_draft_equal_to_the_target_is_accepted_in_full(build):
    result = decode(build(window=3, draft=models.target()))
    assert result.tokens == models.expected()
    assert result.stats.verified == 3 * result.stats.steps


@pytest.mark.parametrize("build", BUILDERS)
def test_a_stranger_as_draft(build):
    result = decode(build(window=3, draft=models.stranger()))
    assert result.tokens == models.expected()
    assert result.stats.accepted_length < decode(build(window=3)).stats.accepted_length


@pytest.mark.parametrize("build", BUILDERS)
def test_more_sequences_than_slices(build):
    """Beyond eight sequences the cache is written in another way."""
    random = np.random.default_rng(0)
    extra = [random.integers(models.VOCAB, size=size).tolist() for size in (1, 2, 4, 5, 6, 9, 13, 32)]
    prompts = [*models.PROMPTS, *extra]
    result = decode(build(window=3), prompts, 6)
    assert result.tokens == [models.greedy_text(models.target(), prompt, 6) for prompt in prompts]


def test_the_rows_of_families_hold_every_pair_of_values():
    axes = (pairs.METHODS, pairs.FAMILIES, pairs.BATCHES, FAMILY_WINDOWS)
    for first, second in combinations(range(4), 2):
        assert {(row[first], row[second]) for row in FAMILY_ROWS} == set(product(axes[first], axes[second]))
    assert set(QUICK_ROWS) <= set(product(*axes))
    for axis, values in enumerate(axes):
        met = {(row[axis], temperature) for row in FAMILY_ROWS for temperature in temperatures(*row)}
        assert met == set(product(values, pairs.TEMPERATURES))


def temperatures(kind, name, batch, window):
    """Those of a row of the covering array: 0, which has programs of its own, or the others, which share theirs."""
    greedy = (list(pairs.FAMILIES).index(name) + FAMILY_WINDOWS.index(window)) % 2 == 0
    return pairs.TEMPERATURES[:1] if greedy else pairs.TEMPERATURES[1:]


def check_family_row(kind, name, batch, window, tried=pairs.TEMPERATURES):
    """Prints where and by how much a sequence differs; a tie of the target's own is none."""
    found = {t: pairs.compared(kind, name, batch, window, t)[1] for t in tried}
    wrong = {t: [p for p in rows if p.gap >= pairs.TIE] for t, rows in found.items()}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize(("kind", "name", "batch", "window"), QUICK_ROWS)
def test_like_published_families(kind, name, batch, window):
    check_family_row(kind, name, batch, window)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "batch", "window"), FAMILY_ROWS)
def test_like_published_families_over_the_covering_array(kind, name, batch, window):
    check_family_row(kind, name, batch, window, temperatures(kind, name, batch, window))


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(("kind", "name", "batch", "window"), QUICK_ROWS)
def test_like_published_families_compiled_as_users_do(kind, name, batch, window):
    check_family_row(kind, name, batch, window)


@pytest.mark.slow
@pytest.mark.parametrize("name", pairs.FAMILIES)
def test_pairs_like_families_say_something(name):
    """Lively text even at temperature 0, and drafts that are right at times."""
    result = pairs.compared("speculative", name, 3, 3, 0.0)[0]
    assert len(set(sum(result.tokens, []))) > 3
    assert 0.1 < result.stats.accepted_length < 2.9


@pytest.mark.slow
@pytest.mark.parametrize("name", pairs.FAMILIES)
def test_branches_of_a_draft_equal_to_the_target_are_accepted_in_full(name):
    """Whatever its positions and windows, a branch sees what the same text in the cache would have seen."""
    method = models.mirror(6, 1, 1, target=pairs.target(name), draft=pairs.target(name))
    sampling = pairs.sampling_of(name, 3, 6, 0.8)
    stats = jaxspec.generate(method, pairs.PROMPTS[:3], 28, sampling=sampling).stats
    assert stats.verified == 6 * stats.steps
    assert stats.steps == 3 * 4


def test_a_difference_is_found_and_measured():
    """Otherwise the array could say nothing but yes."""
    sampling, prompts = pairs.sampling_of("mistral", 3, 1, 0.7), pairs.PROMPTS[:3]
    expected = jaxspec.generate(pairs.autoregressive("mistral"), prompts, 6, sampling=sampling).tokens
    found = [list(row) for row in expected]
    found[1][4] = (found[1][4] + 1) % pairs.VOCAB
    ((sequence, place, gap),) = pairs.partings("mistral", found, expected, sampling)
    assert (sequence, place) == (1, 4)
    assert gap > pairs.TIE


METHODS = {
    "autoregressive": lambda: jaxspec.autoregressive(models.target()),
    "speculative": models.speculative,
    "mirror": models.mirror,
}


@pytest.mark.parametrize(
    "name", ["autoregressive", *(pytest.param(name, marks=pytest.mark.slow) for name in ("speculative", "mirror"))]
)
def test_neighbours_change_nothing(name):
    """Alone, in a batch, and in the same batch in another order."""
    method, temperature = METHODS[name](), [0.8] * 7 + [0.0]
    run = lambda rows: jaxspec.generate(  # noqa: E731
        method,
        [pairs.PROMPTS[row] for row in rows],
        [5 + row for row in rows],
        sampling=Sampling(
            [temperature[row] for row in rows],
            top_p=[1.0 - row / 20 for row in rows],
            seed=[100 + row for row in rows],
        ),
    )
    together = run(range(8))
    assert [len(row) for row in together.tokens] == [5 + row for row in range(8)]
    for order in ([3, 0, 7, 1, 6, 2, 5, 4], list(range(8))[::-1]):
        assert run(order).tokens == [together.tokens[row] for row in order]
    assert [run([row]).tokens[0] for row in range(8)] == together.tokens


@pytest.mark.slow
def test_drafts_of_mirror_are_those_of_speculative_decoding():
    """The same windows, hence the same steps: rolling out ahead only changes when they are drafted."""
    sampling = Sampling(0.8, top_k=6, seed=4)
    one, other = (
        jaxspec.generate(METHODS[name](), pairs.PROMPTS, 20, sampling=sampling) for name in ("speculative", "mirror")
    )
    assert one.tokens == other.tokens
    assert (one.stats.steps, one.stats.accepted) == (other.stats.steps, other.stats.accepted)
    assert 0 < other.stats.reused < other.stats.needed


SEEDS, SETTINGS = 4000, {"temperature": 1.1, "top_p": 0.9}


def two_steps(method, first_seed):
    """What two steps say after one prompt, for many seeds as one batch: (tokens, counts) of both, and who reused."""
    prompt = np.asarray(models.PROMPTS[0], np.int32)
    request, _ = request_of([prompt] * SEEDS, method, 8, Sampling(seed=first_seed, **SETTINGS))
    state = method.init(request._replace(tokens=request.tokens[:, : len(prompt)]), 16)
    state, first = method.step(state)
    _, second = method.step(state)
    return jax.device_get(
        (
            first.tokens,
            first.num_emitted,
            second.tokens,
            first.reused if first.reused is not None else np.zeros(SEEDS, bool),
        )
    )


@cache
def laws():
    """The target's filtered law after the prompt [V], and after each word behind it [V, V]."""
    prompt, words = models.PROMPTS[0], np.arange(models.VOCAB)
    score = jax.jit(partial(log_probabilities, models.target().network))
    logits = np.asarray(score(models.target().params, jnp.asarray([[*prompt, word] for word in words], jnp.int32)))
    law = lambda row: softmax(sorted_filter(row, **SETTINGS))  # noqa: E731
    return law(logits[:, 0, -2]), np.stack([law(row) for row in logits[:, :, -1].T])


#: One token drafted a step; a correction may be foreseen under all of them but the first two.
RATIO = {
    "speculative": models.speculative,
    "pearl": partial(models.mirror, policy=candidates.pearl()),
    "mirror": partial(models.mirror, num_candidates=1),
    "saguaro": partial(models.mirror, policy=candidates.saguaro(2, num_candidates=1)),
    "hybrid": partial(models.mirror, num_candidates=1, policy=candidates.hybrid(1, 1, num_candidates=1)),
    "streams": partial(models.mirror, num_candidates=1, draft=models.streaming()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RATIO)
def test_ratio_keeps_the_law_of_two_tokens(name):
    """Against enumeration; the second token of a later step apart, by whether its window had been rolled out ahead."""
    method = RATIO[name](window=1, acceptance=acceptance.ratio(6))
    parts = [two_steps(method, SEEDS * number) for number in range(5)]
    tokens, emitted, later, reused = (np.concatenate(part) for part in zip(*parts, strict=True))
    first, second = tokens[:, 0], np.where(emitted > 1, tokens[:, 1], later[:, 0])
    words, (law, following) = np.arange(models.VOCAB), laws()
    joint = np.bincount(first * models.VOCAB + second, minlength=models.VOCAB**2)
    assert fits(joint, len(first) * law[:, None] * following)
    for flag in (False,) if name in ("speculative", "pearl") else (False, True):
        apart = (emitted == 1) & (reused == flag)
        assert apart.sum() > 500
        counts = np.stack([np.bincount(second[apart & (first == word)], minlength=models.VOCAB) for word in words])
        assert fits(counts, counts.sum(axis=1, keepdims=True) * following)
