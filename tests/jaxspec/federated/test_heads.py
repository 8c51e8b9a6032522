"""Federated drafts of every kind: what is learned, what is sent, what is refused, and that the result decodes."""

import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
import jaxspec
from jaxspec import federated, zoo
from jaxspec.__main__ import main
from jaxspec.drafts import init_draft, prompt_lookup, small_draft
from jaxspec.federated import VALIDATION, FederatedSetup, Federation, TextProblem, _learning
from jaxspec.loading import load_draft
from jaxspec.text import Text
from jaxspec.training import Recipe, accepted_tokens, draft_task
from tests.support.jaxspec import models

pytestmark = pytest.mark.slow

PROMPT, WINDOW = 4, 2
SETTINGS = Federation(rounds=8, cohort_size=2, local_steps=6, batch_size=4, evaluate_every=8, seed=1)
RECIPE = Recipe(steps=2)
KINDS = "eagle3", "medusa", "hydra", "plain"
KNOWN = (0, 1, 2, 3, 4, 5, 6, 7)


@cache
def draft_of(kind):
    if kind == "plain":
        return small_draft(models.target(), num_layers=1, vocabulary=KNOWN)
    taps = (1, 2, 3) if kind == "eagle3" else None
    return init_draft(kind, models.target(), heads=2, taps=taps)


@cache
def texts():
    prompts = np.random.default_rng(3).integers(models.VOCAB, size=(24, PROMPT)).astype(np.int32)
    return federated.continued(models.target(), prompts, 12)


@cache
def setup_of(kind):
    """Four clients of five texts each; four other texts, and these, to evaluate on."""
    draft, target = draft_of(kind), models.target()
    learning = _learning.learning_of(draft, target, WINDOW)
    problem = TextProblem(
        learning.examples(texts().rows(slice(20)), np.repeat(range(4), 5), None),
        {VALIDATION: texts().rows(slice(20, None)), "seen": texts().rows(slice(20))},
    )
    return FederatedSetup(draft, problem, SETTINGS, WINDOW, None, False, target, recipe=RECIPE)


def loss_of(setup, params):
    """Loss of all parameters of a draft over all clients' examples."""
    task = draft_task(setup.draft, setup.target, RECIPE)
    own, data = {name: params[name] for name in task.own}, texts().rows(slice(20))
    mask = np.arange(data.tokens.shape[1])[None] >= np.full((20, 1), PROMPT)
    return float(jax.jit(task.loss)(own, {"tokens": data.tokens, "mask": mask}, jax.random.key(0))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind):
    """A few rounds lower the loss and raise acceptance on the clients' texts; the target's own stays as it is."""
    setup = setup_of(kind)
    outcome = federated.run(setup, "fedspeed", 0.3)
    assert loss_of(setup, outcome.params) < loss_of(setup, setup.draft.params)
    before, after = outcome.curves["seen"]
    assert after > before
    for name in {"embedding", "index"} & set(setup.draft.params):
        np.testing.assert_array_equal(outcome.params[name], setup.draft.params[name])
    assert outcome.message_bytes == 2 * bytes_of(setup.learning.own)
    assert setup.metric == ("accepted_length" if kind == "plain" else "accepted_tokens")


def bytes_of(tree):
    return sum(4 * leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", ["eagle3", "medusa"])
def test_heads_and_low_rank_updates_are_what_is_sent(kind):
    setup = setup_of(kind)
    start, own = setup.draft.params, setup.learning.own
    head = {name: own[name] for name in ("head", "heads", "head_biases") if name in own}
    outcome = federated.run(replace(setup, send="head"), "fedavg", 0.3)
    assert outcome.message_bytes == bytes_of(head)
    changed = {name for name in start if not_equal(outcome.params[name], start[name])}
    assert changed <= set(head)
    assert changed
    rank = 2
    matrices = [leaf for leaf in jax.tree.leaves(own) if leaf.ndim > 1]
    low = sum(4 * rank * (leaf.shape[-1] + leaf.size // leaf.shape[-1]) for leaf in matrices)
    updated = replace(setup, send="lora", lora=federated.LoRA(rank, 4.0))
    outcome = federated.run(updated, "fedavg", 0.3)
    assert outcome.message_bytes == low
    assert loss_of(setup, outcome.params) < loss_of(setup, start)
    assert jax.tree.map(jnp.shape, outcome.params) == jax.tree.map(jnp.shape, start)


def not_equal(a, b):
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("method", ["centralised", "local-only"])
def test_low_rank_updates_go_with_other_methods(method):
    """Pooled and local training of factors alone."""
    setup = replace(setup_of("medusa"), send="lora", lora=federated.LoRA(2, 4.0), settings=SETTINGS)
    outcome = federated.run(setup, method, 0.3)
    params = outcome.params[0] if method == "local-only" else outcome.params
    if method != "centralised":  # whose best may be the draft that it started from
        assert loss_of(setup, params) < loss_of(setup, setup.draft.params)
    assert jax.tree.structure(params) == jax.tree.structure(setup.draft.params)
    assert outcome.samples == SETTINGS.rounds * 2 * 6 * 4


def test_acceptance_is_that_of_the_whole_texts():
    setup = setup_of("eagle3")
    data = setup.problem.evaluation[VALIDATION]
    expected = accepted_tokens(setup.draft, setup.target, data, window=WINDOW)
    assert setup.before[VALIDATION] == pytest.approx(expected)
    parts = [(setup.draft.params, np.arange(1)), (setup.draft.params, np.arange(1, 4))]
    assert setup.learning.accepted(data, parts) == pytest.approx(expected)


def test_the_target_runs_in_the_loss_where_its_states_are_too_many(monkeypatch):
    setup = setup_of("medusa")
    monkeypatch.setattr(_learning, "MOST_RESIDENT", 0)
    learning = _learning.learning_of(setup.draft, setup.target, WINDOW)
    (client,) = learning.examples(texts().rows(slice(5)), [0] * 5, None)
    assert set(client) == {"tokens", "answers"}
    batch = {"mask": np.asarray([True, True, True, False, True])}
    losses = [
        float(jax.jit(learning.loss)(learning.own, {**each, **batch}, jax.random.key(0))[0])
        for each in (client, setup.problem.clients[0])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


VOCABULARY = "the crown the king the queen and all the world to be or not to be that is the question of a rose "
TEXTS = [" ".join(np.random.default_rng(i).permutation(VOCABULARY.split() * 6)) for i in range(4)]
RECIPE_SETTINGS = federated.FederatedSettings(
    federated.Distilling(client_prompts=2, test_prompts=1, prompt_tokens=16, new_tokens=8, window=3),
    Federation(rounds=2, cohort_size=2, local_steps=1, batch_size=2, learning_rates=(0.1,), evaluate_every=2),
    send="lora",
    lora=federated.LoRA(2, 4.0),
    recipe=RECIPE,
)


@cache
def lettered():
    """A target over letters, with the tokenizer of the embedded pair."""
    pair = zoo.load()
    config = replace(models.TARGET, vocab_size=pair.target.network.config.vocab_size)
    return models.random_model(config, 5)._replace(text=Text.of(pair.tokenizer))


def test_the_recipe_gives_a_draft_that_is_loaded_and_decodes(tmp_path):
    target = lettered()
    draft = init_draft("eagle3", target, taps=(1, 2, 3), vocabulary=range(40))
    arguments = target, draft, target.text, TEXTS, RECIPE_SETTINGS
    result = federated.federate(*arguments, method="fedavg", directory=tmp_path, progress=False)
    assert result.metric == "accepted_tokens"
    assert result.acceptance.keys() == {"before", "after"}
    loaded = load_draft(result.directory, target, report=lambda line: None)
    for name in draft.params:
        jax.tree.map(np.testing.assert_array_equal, loaded.params[name], result.draft.params[name])
    assert not_equal(loaded.params, draft.params)
    plain = jaxspec.generate(jaxspec.autoregressive(target), ["to be or"], 12)
    drafted = jaxspec.generate(jaxspec.speculative(target, loaded, 2), ["to be or"], 12)
    assert drafted.tokens == plain.tokens
    with pytest.warns(jaxfed.NothingTrainedWarning):
        again = federated.federate(*arguments, method="fedavg", directory=tmp_path, progress=False)
    assert again.acceptance == result.acceptance


def refused(draft=None, **options):
    target, settings = lettered(), replace(RECIPE_SETTINGS, **options)
    draft = init_draft("eagle", target) if draft is None else draft
    federated.federate(target, draft, target.text, TEXTS, settings, method="fedavg", progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: refused(send="head"), 'an output head that is trained for send="head", got one that trains fc'),
        (lambda: refused(send="heads"), "expected send to be one of all, head, lora, got 'heads'"),
        (lambda: refused(distilling=replace(RECIPE_SETTINGS.distilling, top_k=2)), "expected top_k None .*, got 2"),
        (lambda: refused(draft_of("medusa")), "expected a target of width 16 and 11 tokens"),
        (lambda: refused(prompt_lookup()), "expected a draft of kind Eagle, Eagle3, Medusa, Hydra"),
        (lambda: replace(setup_of("medusa"), target=None).before, "expected a target for a draft that learns"),
        (
            lambda: replace(setup_of("medusa"), draft=models.draft()).before,
            "expected clients' examples with 'labels' for this draft, got tokens, answers, hidden",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(call, message, monkeypatch):
    monkeypatch.setattr(federated._recipe, "gather", None)
    with pytest.raises(ValueError, match=message):
        call()


def test_the_command_makes_a_head_of_the_target_and_generate_loads_it(tmp_path, capsys, small_pair):
    (tmp_path / "texts").mkdir()
    for index, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{index}.txt").write_text(text)
    distilling = ("client-prompts", 2), ("test-prompts", 1), ("prompt-tokens", 16), ("new-tokens", 8), ("window", 2)
    federation = ("rounds", 1), ("cohort-size", 2), ("local-steps", 1), ("batch-size", 2), ("learning-rates", 0.1)
    flags = [f"--distilling.{name}={value}" for name, value in distilling]
    flags += [f"--federation.{name}={value}" for name, value in federation]
    where = "--target", str(small_pair), "--texts", str(tmp_path / "texts"), "--out", str(tmp_path / "out")
    main(["federate", *where, "--kind", "medusa", "--heads", "2", "--send", "head", *flags, "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["metric"] == "accepted_tokens"
    assert result["send"] == "head"
    config = zoo.load(str(small_pair)).target.network.config
    assert result["bytes_a_client_a_round"] == 2 * 2 * 4 * config.vocab_size * config.width
    prompt = "generate", "--prompt", "to be or", "--max-new-tokens", "8", "--target", str(small_pair), "--json"
    written = []
    for options in (["--method", "autoregressive"], ["--method", "speculative", "--draft", result["draft"]]):
        main([*prompt, *options])
        written.append(json.loads(capsys.readouterr().out.splitlines()[-1])["tokens"])
    assert written[0] == written[1]
