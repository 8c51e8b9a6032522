"""What users of other programs complained of about drafts that read hidden states: one test or more for each group.

Files are those of ``tests/jaxspec``; names without a file are in this one.

1. Layer ids one off, or default ones where others were trained: ``loading/test_drafts.py::
   test_both_conventions_of_layer_ids``; streams against recorded ``hidden_states[i]`` of transformers:
   ``drafts/test_records.py::test_the_targets_streams``, against the library itself: ``test_taps_are_hidden_states``.
2. The draft turned by the target's rotary positions: ``test_rows_and_tokens_are_those_of_a_reference``.
3. Norms and residuals: ``drafts/test_records.py::test_eagle_forward`` for files with every flag, and
   ``::test_a_setting_that_is_wrong_changes_the_logits``.
4. A bias or a head dropped by a loader: ``loading/test_drafts.py::test_files_that_contradict_each_other_are_refused``.
5. Rows left from the draft's own features: ``drafts/test_reading.py::
   test_rows_are_those_of_a_pass_over_the_committed_text``.
6. Prompts in chunks, pairs at their ends, rows that nobody wrote: ``test_rows_do_not_depend_on_chunks``.
7. Vocabularies: ``test_a_whole_vocabulary_has_no_maps``, ``test_maps_are_offsets``, ``test_maps_in_any_order``,
   ``test_tokens_that_the_draft_cannot_say``, ``test_more_children_than_words``, and maps that disagree in
   ``loading/test_drafts.py::test_files_that_contradict_each_other_are_refused``.
8. Trees of several sequences: ``test_a_batch_takes_the_steps_of_single_runs``.
9. Greedy trees that write another text: ``drafts/test_trees.py`` and ``drafts/test_reading.py::
   test_tokens_are_those_of_plain_decoding`` in float32; ``test_bfloat16_parts_at_ties_alone``.
10. The law above temperature 0: the same tests of trees with noise; ``test_the_law_of_two_tokens`` for ``ratio``.
11. Two layers, norms of the inputs, the taps and the output: ``test_what_a_layer_has_comes_back``, and
    ``loading/test_drafts.py::test_every_format_comes_back``; ``drafts/test_records.py::test_eagle_chains``.
12. Tokens a step one off: ``test_a_perfect_draft_counts_all``, ``test_a_draft_that_is_never_right_counts_nothing``.
    A sliding window left out: ``test_rows_and_tokens_are_those_of_a_reference``, ``test_a_window_of_unknown_layers``.
"""

import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxspec
from jaxspec import Sampling
from jaxspec.drafts import Draft, Eagle, Eagle3, FeatureDrafter, Medusa, init_draft, limited, trees
from jaxspec.generation.requests import request_of
from jaxspec.loading import load_draft, save_draft
from jaxspec.methods import fallbacks
from jaxspec.models import Attention
from jaxspec.models.config import Block, Ends, Rotary
from jaxspec.training import hidden_states
from jaxspec.verify import Reads, acceptance
from jaxspec.verify.features import Reader
from jaxspec.verify.target import prefill
from tests.jaxspec.drafts.test_reading import true_rows
from tests.jaxspec.verify.test_acceptance import fits
from tests.support.jaxspec import draft_records as records
from tests.support.jaxspec import models, pairs
from tests.support.jaxspec import reading_rows as rows

VOCAB, WIDTH = models.VOCAB, models.TARGET.width
WORDS = rows.IDS.tolist()


def quiet(line):
    """Drop the report."""


def with_words(params):
    """Parameters of a draft of seven of eleven tokens."""
    index = np.full(VOCAB, len(WORDS), np.int32)
    index[WORDS] = np.arange(len(WORDS))
    return params | {"index": jnp.asarray(index)}


def draft_of(network, params):
    return Draft(FeatureDrafter(network), params)


def saved(draft, folder, arrays=None, config=None):
    """A folder with a draft, some arrays and settings replaced; None removes one."""
    save_draft(draft, folder)
    (file,) = folder.glob("*.safetensors")
    found = load_file(file) | (arrays or {})
    save_file({name: array for name, array in found.items() if array is not None}, file)
    about = json.loads((folder / "config.json").read_text())
    inner = about.get("transformer_layer_config", about)
    inner.update(config or {})
    (folder / "config.json").write_text(json.dumps(about))
    return folder


# 1 Taps


@pytest.mark.peers
def test_taps_are_hidden_states():
    import torch
    from transformers import LlamaForCausalLM

    tokens = records.record("target")["a.tokens"]
    peer = LlamaForCausalLM.from_pretrained(records.FOLDER / "target", dtype=torch.float32)
    expected = peer(torch.tensor(tokens[None]), output_hidden_states=True).hidden_states
    model, count = records.target(), records.target().network.config.num_layers
    reader = Reader(Reads(tuple(range(count)), final=True))
    found = prefill(model.network, model.params, records.request_of(tokens), len(tokens) + 1, reader)[1]
    for tap, state in enumerate([*found.taps, found.final]):  # the library's last one is behind its final norm
        records.close(state[0], expected[tap][0].detach().numpy())


# 2 and 12 Rotary positions and windows of its own


TAPS = Reads((0, 1, 2))
#: Two layers, of which the second one's rows depend on what the first one's attention sees.
SETTINGS = {
    "theta": Attention(Rotary(7.0)),
    "window": Attention(window=4),
    "one layer's window": Attention(window=4, windowed=(True, False)),
}
LONG = (np.arange(20) * 7 % VOCAB).tolist()


@cache
def two_layers(name):
    config = replace(rows.NARROW, num_layers=2, attention=SETTINGS[name])
    network = Eagle3(config, VOCAB, WIDTH, TAPS)
    params = with_words(network.init(jax.random.key(3)))
    params["layers"][0]["attention"]["out"] *= 20.0  # or the features' size would hide what attention adds
    return draft_of(network, params)


def fused(draft, text):
    """F·[r_0; r_1; r_2] of a text: [T, D']."""
    model = rows.target("grouped")
    streams = hidden_states(model.network, model.params, jnp.asarray([text]), (1, 2))
    taps = [model.network.embed(model.params, jnp.asarray([text])), *streams[:2]]
    joined = np.concatenate([np.asarray(tap)[:, 0].T for tap in taps], axis=1)
    return joined @ np.asarray(draft.params["fusion"]["matrix"]).T


def normed(x, scale, epsilon=1e-5):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def turned(heads, theta):
    """Heads [G, Q, T, h] by their positions."""
    size = heads.shape[-1]
    angles = np.arange(heads.shape[2])[:, None] * theta ** (-np.arange(0, size, 2) / size)
    first, second = np.split(heads, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(params, x, theta, window):
    """Output [T, D'] of attention over the last ``window`` positions, and its keys [G, T, h]."""
    heads = np.einsum("gqhd,td->gqth", params["qkv"], x)
    queries, keys = turned(heads[:, :-2], theta), turned(heads[:, -2:-1], theta)[:, 0]
    scores = np.einsum("gqth,gsh->gqts", queries, keys) / keys.shape[-1] ** 0.5
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = np.einsum("gqts,gsh->tgqh", weights / weights.sum(axis=-1, keepdims=True), heads[:, -1])
    return context.reshape(len(x), -1) @ params["out"].T, keys


def reference(params, features, tokens, settings):
    """EAGLE-3 in NumPy over pairs: keys of every layer, a [T, D'], logits [T, V_d]."""
    embedding, x, keys = params["embedding"][tokens], features, []
    for number, layer in enumerate(params["layers"]):
        inputs = normed(x if number else embedding, layer["attention_norm"]["scale"])
        if number == 0:
            inputs = np.concatenate([inputs, normed(features, params["hidden_norm"]["scale"])], axis=1)
        window = settings.window if settings.is_windowed(number) else len(tokens)
        added, own = attention(layer["attention"], inputs, settings.rotary.theta, window)
        keys, x = [*keys, own], x + added
        gate, up = np.einsum("gfd,td->gtf", layer["mlp"]["gate_up"], normed(x, layer["mlp_norm"]["scale"]))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down"].T
    return keys, x, normed(x, params["final_norm"]["scale"]) @ params["head"].T


def chained(draft, text, settings, count):
    """Keys of a text's pairs, and the tokens of a greedy chain behind it."""
    params, features, tokens = jax.tree.map(np.asarray, draft.params), fused(draft, text)[:-1], text[1:]
    keys, drafted = None, []
    for _ in range(count):
        found, x, logits = reference(params, features, tokens, settings)
        keys, drafted = keys or found, [*drafted, WORDS[int(np.argmax(logits[-1]))]]
        features, tokens = np.concatenate([features, x[-1:]]), [*tokens, drafted[-1]]
    return keys, drafted


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_and_tokens_are_those_of_a_reference(name):
    draft = two_layers(name)
    method = jaxspec.speculative(rows.target("grouped"), draft, 4)
    state = method.init(models.request([LONG, LONG[:7]]), 64)
    for sequence, text in enumerate([LONG, LONG[:7]]):
        keys, drafted = chained(draft, text, SETTINGS[name], 4)
        assert state.window.tokens[sequence].tolist() == drafted
        for found, expected in zip(state.draft.cache, keys, strict=True):
            np.testing.assert_allclose(found[0][sequence, :, : len(text) - 1], expected, atol=1e-3)
    other, _ = chained(draft, LONG, Attention(), 1)  # the target's θ, and no window
    own, _ = chained(draft, LONG, SETTINGS[name], 1)
    assert np.abs(other[1] - own[1]).max() > 0.1


def test_a_window_of_unknown_layers(tmp_path):
    """``use_sliding_window`` without ``layer_types``: a window must not be left out in silence."""
    folder = saved(two_layers("window"), tmp_path, config={"layer_types": None, "use_sliding_window": True})
    with pytest.raises(ValueError, match=r"expected layer_types .* window of 4 positions, got none; add layer_types"):
        load_draft(folder, models.target(), report=quiet)


# 6 Chunks


SIZES = 255, 256, 257, 511, 513


def test_rows_do_not_depend_on_chunks():
    prompts = [(np.arange(size) * 7 % VOCAB).tolist() for size in SIZES]
    method = jaxspec.speculative(rows.target("grouped"), rows.draft("eagle3 early"), 2)
    request, capacity = request_of([np.asarray(prompt) for prompt in prompts], method, 4)
    assert request.tokens.shape[1] == 768  # three chunks
    cache = method.init(request, capacity).draft.cache
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cache))
    # One pass; the prompts are beginnings of the last one.
    whole = true_rows(rows.draft("eagle3 early"), rows.target("grouped"), prompts[-1])
    for sequence, size in enumerate(SIZES):
        for found, expected in zip(jax.tree.leaves(cache), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(found[sequence, :, : size - 1], expected[0, :, : size - 1], atol=5e-3)


# 7 Vocabularies


def maps_of(folder):
    (file,) = folder.glob("*.safetensors")
    return {name: array for name, array in load_file(file).items() if name in ("d2t", "t2d")}


def equal(one, other):
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one.params, other.params)
    return one.drafter == other.drafter and jax.tree.all(same)


def test_a_whole_vocabulary_has_no_maps(tmp_path):
    draft = init_draft("eagle3", models.target(), taps=(1, 2, 3), vocabulary=range(VOCAB))
    assert not maps_of(saved(draft, tmp_path))
    again = load_draft(tmp_path, models.target(), report=quiet)
    assert equal(draft, again)
    assert "index" not in again.params


def test_maps_are_offsets(tmp_path):
    draft = init_draft("eagle3", models.target(), taps=(1, 2, 3), vocabulary=WORDS)
    maps = maps_of(saved(draft, tmp_path))
    np.testing.assert_array_equal(maps["d2t"] + np.arange(len(WORDS)), WORDS)
    np.testing.assert_array_equal(np.flatnonzero(maps["t2d"]), WORDS)
    assert equal(draft, load_draft(tmp_path, models.target(), report=quiet))
    saved(draft, tmp_path, {"d2t": np.asarray(WORDS)})
    with pytest.raises(ValueError, match="expected d2t of offsets to 7 different tokens of 11, got ids from 0 to 15"):
        load_draft(tmp_path, models.target(), report=quiet)


def test_maps_in_any_order(tmp_path):
    """Row j of a draft's head is token j + d2t[j], also where these do not ascend."""
    draft = init_draft("eagle3", models.target(), taps=(1, 2, 3), vocabulary=WORDS)
    turned_over = np.asarray(WORDS[::-1]) - np.arange(len(WORDS))
    head = np.asarray(draft.params["head"])[::-1].copy()
    folder = saved(draft, tmp_path / "one", {"d2t": turned_over, "lm_head.weight": head})
    made = load_draft(folder, models.target(), report=quiet)
    x = jax.random.normal(jax.random.key(0), (WIDTH, 1, 3))
    one, other = (each.drafter.network.logits(each.params, x, 0) for each in (draft, made))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    save_draft(made, tmp_path / "two")
    assert equal(made, load_draft(tmp_path / "two", models.target(), report=quiet))


@cache
def cyclic():
    """A target that says the next higher number, whatever came before: nothing but embedding and head."""
    config = replace(models.TARGET, num_layers=2, ends=Ends(tied=False, embedding_scale=1.0))
    model = jaxspec.decoder(config, jax.random.key(0))
    still = silenced(model.params["layers"])
    ends = {"embedding": said(0), "head": said(1)}
    return model._replace(params=model.params | ends | {"layers": still})


def said(ahead):
    """A head [V, D] that says the token ``ahead`` numbers behind that of an embedding."""
    return jnp.roll(jnp.eye(VOCAB, WIDTH), ahead, axis=0)


def silenced(layers):
    """Layers that add nothing."""
    return [
        layer | {"attention": layer["attention"] | {"out": 0 * layer["attention"]["out"]}}
        | {"mlp": layer["mlp"] | {"down": 0 * layer["mlp"]["down"]}}
        for layer in layers
    ]  # fmt: skip


def test_tokens_that_the_draft_cannot_say():
    """One drafted token, right exactly where the draft has it; roots and the target's own tokens lie outside too."""
    network = Eagle3(replace(rows.LAYER, vocab_size=len(WORDS)), VOCAB, WIDTH, Reads((0,)))
    params = with_words(network.init(jax.random.key(0)))
    params |= {"layers": silenced(params["layers"]), "fusion": {"matrix": jnp.eye(WIDTH)}, "head": said(2)[rows.IDS]}
    steps = steps_of(jaxspec.speculative(cyclic(), draft_of(network, params), 1), [[0, 1]], 40, None)[0]
    root, expected = 1, []
    while sum(expected) + len(expected) < 40:
        expected.append(int((root + 1) % VOCAB in WORDS))
        root = (root + 1 + expected[-1]) % VOCAB
    assert [verified for _, verified in steps] == expected
    roots = {tokens[-1] for tokens, _ in steps}
    own = {tokens[-1] for tokens, verified in steps if verified}
    assert roots - set(WORDS)
    assert own - set(WORDS), "tokens behind a whole window"


def test_more_children_than_words():
    """Of nine children seven are all its words, so that two tokens are right wherever the text has two of them."""
    method = jaxspec.speculative(rows.target("grouped"), rows.draft("eagle3 early"), tree=trees.dynamic(9, 2, 60))
    found = steps_of(method, pairs.PROMPTS[:3], models.NEW_TOKENS, None)
    assert {verified for steps in found for _, verified in steps} == {0, 1, 2}
    for steps, text in zip(found, rows.expected("grouped", 3, "greedy", models.NEW_TOKENS), strict=True):
        assert [token for tokens, _ in steps for token in tokens] == text
        for tokens, verified in steps[:-1]:
            assert verified == len(tokens) - 1
            assert verified == 2 or not {*tokens} <= {*WORDS}


# 8 Several sequences


def steps_of(method, prompts, new_tokens, sampling):
    """The tokens that every step adds to each sequence, and how many drafted ones the target confirms."""
    arrays = [np.asarray(prompt) for prompt in prompts]
    request, capacity = request_of(arrays, method, new_tokens, *([] if sampling is None else [sampling]))
    state, steps = method.init(request, capacity), [[] for _ in prompts]
    while any(sum(len(tokens) for tokens, _ in each) < new_tokens for each in steps):
        state, info = method.step(state)
        for sequence, each in enumerate(steps):
            if count := int(info.num_emitted[sequence]):
                each.append((info.tokens[sequence, :count].tolist(), int(info.num_verified[sequence])))
    return steps


BATCHED = {
    "static tree": lambda: models.speculative(tree=trees.static((3, 2, 1))),
    "EAGLE-3": lambda: rows.method("eagle3 early", "chain", "grouped"),
    "EAGLE-3, dynamic tree": lambda: rows.method("eagle3 early", "dynamic", "grouped"),
    "EAGLE-3, Mirror-SD": lambda: rows.method("eagle3 early", "mirror", "grouped"),
}


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_takes_the_steps_of_single_runs(name):
    method, prompts, seeds = BATCHED[name](), pairs.PROMPTS[:3], (11, 5, 8)
    together = steps_of(method, prompts, models.NEW_TOKENS, Sampling(1.0, seed=seeds))
    for prompt, seed, found in zip(prompts, seeds, together, strict=True):
        assert found == steps_of(method, [prompt], models.NEW_TOKENS, Sampling(1.0, seed=seed))[0]
    depths = [[verified for _, verified in each] for each in together]
    assert any(len({*at}) > 1 for at in zip(*depths, strict=False)), "all sequences accept alike"
    assert any(map(any, depths))


# 9 bfloat16


def short(model):
    return model._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))


def partings(model, prompts, found, expected):
    """The gap of the two best tokens where a text first differs, and the largest score there: one pair a sequence."""
    for prompt, one, other in zip(prompts, found, expected, strict=True):
        if one != other:
            place = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
            text = jnp.asarray([[*prompt, *other[:place]]])
            hidden = hidden_states(model.network, model.params, text)[-1]
            scores = np.sort(np.asarray(model.network.logits(model.params, hidden)[:, 0, -1], np.float32))
            yield float(scores[-1] - scores[-2]), float(np.abs(scores).max())


#: Half a unit in the last of bfloat16's eight binary places; eight roundings a layer.
ROUNDING = 8 * models.TARGET.num_layers * 2.0**-9
MANY = [np.random.default_rng(seed).integers(VOCAB, size=2 + seed % 28).tolist() for seed in range(32)]


@cache
def short_target():
    target = short(models.target())
    return target, jaxspec.generate(jaxspec.autoregressive(target), MANY, 24).tokens


@pytest.mark.parametrize("kind", ["language model", "eagle3"])
def test_bfloat16_parts_at_ties_alone(kind):
    target, expected = short_target()
    if kind == "eagle3":
        draft, tree = init_draft("eagle3", target, taps=(1, 2, 3)), trees.dynamic(3, 3, 9)
    else:
        draft, tree = short(models.draft()), trees.static((3, 2, 1))
    found = jaxspec.generate(jaxspec.speculative(target, draft, tree=tree), MANY, 24)
    gaps = [gap / largest for gap, largest in partings(target, MANY, found.tokens, expected)]
    assert found.stats.accepted > 0
    assert all(gap < ROUNDING for gap in gaps), gaps
    assert len(gaps) < len(MANY) / 2


# 10 The law of ratio


@pytest.mark.parametrize("kind", ["eagle3 early", "medusa"])
def test_the_law_of_two_tokens(kind):
    """A draft of fewer words than the target's, and one whose second token is blind to the first."""
    model, prompt, draws = rows.target("grouped"), [1, 5, 3], 2048
    method = jaxspec.speculative(model, rows.draft(kind), 2, acceptance=acceptance.ratio())
    found = jaxspec.generate(method, [prompt] * draws, 2, sampling=Sampling(2.0, seed=1))
    texts = jnp.asarray([[*prompt, token] for token in range(VOCAB)])
    logits = model.network.logits(model.params, hidden_states(model.network, model.params, texts)[-1])
    first, second = (softmax(np.asarray(logits[:, :, place], np.float64) / 2) for place in (2, 3))
    counts = np.bincount([VOCAB * one + two for one, two in found.tokens], minlength=VOCAB**2)
    assert 0.5 < found.stats.accepted_length < 1.5
    assert fits(counts, draws * first[:, 0][:, None] * second.T)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


# 11 What a layer may have

KINDS = {
    "EAGLE-3 of two layers, a norm of all taps": lambda: eagle3(2, norm_before_fc=True, norm_output=True),
    "EAGLE-3 of two layers, a norm of each tap": lambda: eagle3(2, fc_norm=True, norm_before_residual=True),
    "EAGLE-3, Qwen3's norms of heads": lambda: eagle3(1, Attention(norm_heads=True)),
    "EAGLE-3, Qwen2's biases": lambda: eagle3(1, Attention(qkv_bias=True)),
    "EAGLE-3, every bias": lambda: eagle3(1, Attention(qkv_bias=True, out_bias=True), block=Block(bias=True)),
    "EAGLE, two layers": lambda: Eagle(replace(rows.LAYER, num_layers=2), fc_bias=False),
    "EAGLE, norms around": lambda: Eagle(rows.LAYER, norm_inputs=True, norm_output=True),
    "EAGLE, Qwen2's biases": lambda: Eagle(replace(rows.LAYER, attention=Attention(qkv_bias=True))),
}


def eagle3(num_layers, attention=Attention(), block=Block(), **flags):
    config = replace(rows.LAYER, num_layers=num_layers, attention=attention, block=block)
    return Eagle3(config, VOCAB, WIDTH, Reads((1, 2, 3)), **flags)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_layer_has_comes_back(name, tmp_path):
    network = KINDS[name]()
    network = replace(network, config=replace(network.config, ends=Ends(tied=False, embedding_scale=1.0)))
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(0)))
    noise = [jax.random.normal(jax.random.key(number), leaf.shape) for number, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, noise)
    if isinstance(network, Eagle):  # its files have no head: it is the target's
        params |= {"head": models.target().params["embedding"]}
    save_draft(draft_of(network, params), tmp_path)
    assert equal(draft_of(network, params), load_draft(tmp_path, models.target(), report=quiet))


# 12 Tokens a step


def eagle(ahead):
    """EAGLE that says the token ``ahead`` numbers behind the last one."""
    network = Eagle(rows.LAYER)
    params = network.init(jax.random.key(0))
    matrix = jnp.concatenate([jnp.eye(WIDTH), jnp.zeros((WIDTH, WIDTH))], axis=1)
    ends = {"embedding": said(0), "head": said(ahead)}
    return draft_of(network, params | {"layers": silenced(params["layers"]), "fc": matrix} | ends)


def medusa(ahead):
    """Medusa whose heads say the tokens from ``ahead`` numbers behind the last one on."""
    network = Medusa(VOCAB, WIDTH, depth=3)
    params = network.init(jax.random.key(0))
    heads = [said(1 + head + ahead) for head in range(network.depth)]
    return draft_of(network, {"blocks": jax.tree.map(jnp.zeros_like, params["blocks"]), "heads": heads})


COUNTED = {
    "EAGLE": lambda ahead: jaxspec.speculative(cyclic(), eagle(ahead), 3),
    "EAGLE, a tree": lambda ahead: jaxspec.speculative(cyclic(), eagle(ahead), tree=trees.dynamic(1, 3, 4)),
    "EAGLE, Mirror-SD": lambda ahead: models.mirror(3, 2, 1, target=cyclic(), draft=eagle(ahead)),
    "Medusa": lambda ahead: jaxspec.speculative(cyclic(), medusa(ahead), 3),
}
PROMPTS, NEW = [[4, 5], [9, 10, 0, 1]], 24


@pytest.mark.parametrize("name", COUNTED)
def test_a_perfect_draft_counts_all(name):
    stats = jaxspec.generate(COUNTED[name](1), PROMPTS, NEW).stats
    assert stats.new_tokens / stats.steps == 4  # γ + 1
    assert (stats.accepted, stats.verified, stats.accepted_length) == (3 * stats.steps, 3 * stats.steps, 3)


@pytest.mark.parametrize("name", COUNTED)
def test_a_draft_that_is_never_right_counts_nothing(name):
    found = jaxspec.generate(COUNTED[name](2), PROMPTS, NEW)
    stats = found.stats
    assert [row[:3] for row in found.tokens] == [[6, 7, 8], [2, 3, 4]]
    assert stats.new_tokens == stats.steps == NEW * len(PROMPTS)  # 1.00
    assert stats.accepted == stats.verified == stats.accepted_length == 0


# What does not belong together is refused before any work starts


def other(**sizes):
    return models.random_model(replace(models.TARGET, **sizes), 0)


@cache
def own(kind, **options):
    return init_draft(kind, models.target(), **options)


def three():
    return own("eagle3", taps=(1, 2, 3))


def two_heads():
    return own("medusa", heads=2)


def looked_up(kind):
    return models.mirror(2, draft=own(kind), fallback=fallbacks.NGram(2))


MISFITS = {
    "another width": (
        lambda: jaxspec.speculative(other(width=32), three()),
        "expected a target of width 16 and 11 tokens, .* got 32 and 11; pass the target that the draft was trained on",
    ),
    "another vocabulary, Mirror-SD": (
        lambda: jaxspec.mirror(other(vocab_size=12), two_heads()),
        "expected a target of width 16 and 11 tokens, .* got 16 and 12; pass the target that the draft was trained on",
    ),
    "taps beyond the target": (
        lambda: jaxspec.speculative(other(num_layers=2), three()),
        r"expected ascending taps from 0 to 2 .* got \(1, 2, 3\); pass other taps=, or the target",
    ),
    "a window beyond the heads, Mirror-SD": (
        lambda: models.mirror(3, draft=two_heads()),
        "expected a window or a tree of at most 2 levels, since the draft has 2 heads, got 3; pass window=2",
    ),
    "a dynamic tree beyond the heads": (
        lambda: models.speculative(draft=two_heads(), tree=trees.dynamic(2, 3, 6)),
        "expected a window or a tree of at most 2 levels, since the draft has 2 heads, got 3; pass window=2",
    ),
    "a dynamic tree of more children than tokens": (
        lambda: models.speculative(draft=three(), tree=trees.dynamic(12, 2, 20)),
        r"expected at most 11 children of a node \(the vocabulary\), got 12",
    ),
    "a tree of the ratio test": (
        lambda: models.speculative(draft=three(), tree=trees.chain(2), acceptance=acceptance.ratio()),
        r"expected acceptance.match\(\) with a tree, got a rule .*; pass acceptance=",
    ),
    "a fallback on Medusa that needs a language model": (
        lambda: looked_up("medusa"),
        "expected a draft that can run tokens that were looked up, got FeatureDrafter; use fallbacks.Full",
    ),
    "streams of EAGLE": (
        lambda: jaxspec.streaming(own("eagle"), 2),
        r"expected a language model as a draft to give streams, got a draft of another kind \(FeatureDrafter\)",
    ),
    "fewer streams of EAGLE": (
        lambda: limited(own("eagle"), 0),
        r"expected a language model as a draft to limit its streams, got a draft of another kind \(FeatureDrafter\)",
    ),
    "more nodes than candidates": (
        lambda: trees.dynamic(2, 1, 4),
        "expected 2 <= nodes of a tree <= 3, .* got 4; there are 2 candidates behind the root",
    ),
    "more nodes than a tree may have": (
        lambda: trees.dynamic(16, 6, 1025),
        "expected 2 <= nodes of a tree <= 1024, .* got 1025; no tree may have more",
    ),
    "a chain longer than a tree may have nodes": (
        lambda: trees.chain(1024),
        "expected 1 <= window <= 1023, .*got 1024",
    ),
    "a prompt too long, a tree": (
        lambda: jaxspec.generate(models.speculative(tree=trees.dynamic(10, 6, 400)), [[1] * 61], 4, max_length=64),
        r"expected prompt and new tokens to fit the cache of 64, got 61 \+ 4; shorten the prompt or raise max_length",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(name):
    act, words = MISFITS[name]
    with pytest.raises(ValueError, match=words):
        act()


def test_a_tree_larger_than_the_text_fits_its_cache():
    method = models.speculative(tree=trees.static((11, 11, 2)))  # 375 nodes, where the text has 64 positions
    found = jaxspec.generate(method, [models.PROMPTS[0]], 61, max_length=64).tokens[0]
    assert found == models.greedy_text(models.target(), models.PROMPTS[0], 61)
