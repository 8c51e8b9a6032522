"""Recorded outputs of the original programs of EAGLE-1 to -3, Medusa and Hydra, replayed with the same weights."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafts import Draft, Pending, Proposer, Verification, trees
from jaxspec.drafts.eagle import Eagle
from jaxspec.generation.requests import request_of
from jaxspec.models.attention import cached, causal
from jaxspec.verify import Features, Reads
from jaxspec.verify.acceptance import match
from jaxspec.verify.features import Reader
from jaxspec.verify.target import Target as VerifyTarget
from jaxspec.verify.target import prefill, tree_pass
from jaxspec.verify.tree import longest_path
from tests.support.jaxspec import draft_records as records

PATTERNS = "eagle3_*", "eagle1_raw*"
EAGLES = [name for pattern in PATTERNS for name in records.names(pattern)]
GREEDY = Proposer(match(), None)


def final(f):
    return Features((), jnp.asarray(f)[None])


def fused(made, features):
    """What the target sends: [B, T, D']."""
    return made.drafter.network.fuse(made.drafter.fusion(made.params), features)


def begun(made, tokens):
    """The drafter's state after a prompt, and its root."""
    found = fused(made, records.features(made.drafter.reads, tuple(tokens), padded=True))
    request = records.request_of(tokens, padded=True)
    state = _begin(made.drafter, request.tokens.shape[1] + 16, made.params, request, found)
    return state, Pending(jnp.asarray([tokens[-1]]), jnp.asarray([len(tokens) - 1]))


@partial(jax.jit, static_argnums=(0, 1))
def _begin(drafter, capacity, params, request, found):
    return drafter.begin(params, request, found, capacity, 64)


def grown(made, policy, state, root):
    return policy.tree(_grow(made.drafter, policy, made.params, state, root))


@partial(jax.jit, static_argnums=(0, 1))
def _grow(drafter, policy, params, state, root):
    return drafter.grow(params, state, root, policy, GREEDY)[0]


@pytest.mark.parametrize("name", records.names("target*"))
def test_the_targets_streams(name):
    model, found = records.target(name), records.record(name)
    for text in records.texts(found):
        tokens, count = found[f"{text}.tokens"], model.network.config.num_layers
        reads = Reads(tuple(range(count + 1)), final=True)
        streams = prefill(model.network, model.params, records.request_of(tokens), len(tokens) + 1, Reader(reads))[1]
        records.close(np.concatenate(streams.taps), found[f"{text}.r"])
        records.close(streams.final[0], found[f"{text}.f"])


@pytest.mark.parametrize("name", EAGLES)
def test_eagle_forward(name):
    found, made = records.record(name), records.draft(name)
    network = made.drafter.network
    inputs = found if records.texts(found) else records.record("eagle3_raw")
    for text in records.texts(inputs):
        tokens = inputs[f"{text}.tokens"]
        if isinstance(network, Eagle):
            given = final(inputs[f"{text}.f"])
        else:
            given = records.of_concatenated(network.reads, inputs[f"{text}.taps_concat"])
            own = records.features(network.reads, tuple(tokens))
            records.close(np.concatenate(own.taps, axis=-1)[0], inputs[f"{text}.taps_concat"])
        inputs_of = jnp.moveaxis(fused(made, given), -1, 0)[:, :, :-1]
        if f"{text}.fused" in found:
            records.close(inputs_of[:, 0].T, found[f"{text}.fused"])
        x, logits, _ = records.run(made, inputs_of, tokens[1:], attend=causal())
        records.close(x[:, 0].T, found[f"{text}.feature"])
        records.close(records.own_vocabulary(made, logits), found[f"{text}.logits"])


@pytest.mark.parametrize("name", [name for pattern in PATTERNS for name in records.names(pattern, ".chain.")])
def test_eagle_chains(name):
    found, made = records.record(name), records.draft(name)
    network = made.drafter.network
    inputs = found if records.texts(found) else records.record("eagle3_raw")
    for text in records.texts(inputs):
        chain = {key.removeprefix(f"{text}.chain."): value for key, value in found.items() if f"{text}.chain." in key}
        prefix = inputs[f"{text}.tokens"][: int(chain["prefix_len"])]
        state, root = begun(made, prefix)
        drafted, _ = made.drafter.propose(made.params, state, root, len(chain["token_in"]), GREEDY._replace())
        choices = chain.get("choice_target", chain["choice_draft"])
        np.testing.assert_array_equal(drafted.tokens[0], choices)
        node, rows = state.recent.newest, state.cache
        for step, token in enumerate(chain["token_in"]):
            records.close(node[:, 0, 0], chain["feature_in"][step])
            attend = cached(jnp.asarray([[len(prefix) - 2 + step]]))
            x, logits, rows = records.run(made, node, [token], len(prefix) - 2 + step, rows, attend)
            records.close(x[:, 0, 0], chain["feature_out"][step])
            records.close(records.own_vocabulary(made, logits)[0], chain["logits"][step])
            node = network.following(made.params, x)
            if "feature_next" in chain:
                records.close(node[:, 0, 0], chain["feature_next"][step])


@pytest.mark.parametrize("name", records.names("eagle3_*", ".allprefix."))
def test_eagle_chains_from_every_prefix(name):
    found, made = records.record(name), records.draft(name)
    keys = [key for key in found if key.endswith(".allprefix.choice_target")]
    for key in keys:
        tokens = found[f"{key.split('.')[0]}.tokens"]
        for length in range(2, len(tokens) + 1, 3):
            drafted, _ = made.drafter.propose(made.params, *begun(made, tokens[:length]), found[key].shape[1], GREEDY)
            np.testing.assert_array_equal(drafted.tokens[0], found[key][length - 2])


@pytest.mark.parametrize("name", records.names("tree_*"))
def test_dynamic_trees(name):
    found, made = records.record(name), records.draft(name.removeprefix("tree_"))
    cases = sorted({key.removesuffix(".tokens") for key in found if key.endswith(".tokens")})
    assert cases
    for case in cases:
        value = lambda field, case=case: found[f"{case}.{field}"]  # noqa: E731
        top_k = len(value("pool_token")) // len(value("pool_parents_table"))
        depth = 1 + (len(value("pool_parents_table")) - 1) // top_k
        policy, prefix = trees.dynamic(top_k, depth, len(value("tokens"))), value("prefix_tokens")
        if f"{case}.accepted" in found:
            first, accepted = int(value("first_prefix_len")), int(value("accepted"))
            state, _ = begun(made, prefix[:first])
            whole = fused(made, records.features(made.drafter.reads, tuple(prefix)))
            window = jnp.asarray([prefix[first : first + accepted + 1]], jnp.int32).at[0, accepted].set(0)
            at, last = jnp.asarray([first - 1]), jnp.asarray([prefix[-1]], jnp.int32)
            index = jnp.minimum(first - 1 + jnp.arange(accepted + 2), len(prefix) - 1)[None]
            verified = Verification(
                window, at, None, jnp.asarray([accepted]), last, jnp.take_along_axis(whole, index[..., None], axis=1)
            )
            state = made.drafter.absorb(made.params, state, verified)
            root = Pending(last, jnp.asarray([len(prefix) - 1]))
        else:
            state, root = begun(made, prefix)
        tree = grown(made, policy, state, root)
        np.testing.assert_array_equal(tree.tokens[0], value("tokens"))
        np.testing.assert_array_equal(tree.depth[0], value("depth"))
        np.testing.assert_array_equal(tree.ancestors[0], value("mask"))
        parents = np.where(
            tree.depth[0] > 0, np.take_along_axis(tree.paths[0], np.maximum(tree.depth[0] - 1, 0)[:, None], 1)[:, 0], -1
        )
        np.testing.assert_array_equal(parents, value("parents"))


SETTINGS = {"nodes": ("total_token", "total_tokens", "nodes"), "depth": ("depth",), "top_k": ("top_k", "topk")}


def trace_of(found, case):
    """Text, positions of the root before every step, and tree settings of a recorded decoding."""
    part = {key.removeprefix(case): value for key, value in found.items() if key.startswith(case)}
    positions = [
        value for key, value in sorted(part.items(), key=lambda item: _order(item[0])) if "length_before" in key
    ]
    text = max((each for each in part.values() if each.ndim == 1 and each.dtype.kind == "i"), key=len)
    settings = {
        name: int(next((part[key] for key in part if key.rsplit(".")[-1] in keys and part[key].ndim == 0), -1))
        for name, keys in SETTINGS.items()
    }
    return text.tolist(), np.concatenate([np.atleast_1d(each) for each in positions]).tolist(), settings


def _order(key):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


@pytest.mark.parametrize("name", records.names("trace_*"))
def test_tree_decoding_step_by_step(name):
    """Prompt, tokens and accepted tokens of every step; ``length_before`` counts the tokens before the root."""
    found = records.record(name)
    for case in sorted({key.split(".")[0] for key in found if "." in key and "length_before" in key}) or [""]:
        text, positions, settings = trace_of(found, case)
        if min(settings.values()) < 1:
            pytest.skip(f"{name} does not say {', '.join(key for key, value in settings.items() if value < 1)}")
        tree = trees.dynamic(settings["top_k"], settings["depth"] + 1, settings["nodes"])
        method = jaxspec.speculative(records.target(), records.draft(name.removeprefix("trace_")), tree=tree)
        ids = [np.asarray(text[: positions[0] + 1], np.int32)]
        request, capacity = request_of(ids, method, len(text) - len(ids[0]) + tree.max_depth)
        state, seen = method.init(request, capacity), list(ids[0])
        for position in positions:
            assert int(state.target.progress.position[0]) == position
            state, info = method.step(state)
            seen += info.tokens[0, : int(info.num_verified[0]) + 1].tolist()
        assert seen[: len(text)] == text[: len(seen)]


def published_paths():
    """Pairs of a record file and the prefix of its arrays."""
    shapes = {
        "medusa_tree": ("small.", "mc_sim_7b_63."),
        "hydra": ("small.", "mc_sim_7b_63."),
        "eagle1_static_tree": ("",),
    }
    return [(name, key) for name, keys in shapes.items() for key in keys]


@pytest.mark.parametrize(("name", "key"), published_paths())
def test_published_shapes(name, key):
    found = records.record(name)
    if f"{key}paths" not in found:
        pytest.skip(f"{name} holds no {key}paths")
    shape = trees.static([tuple(rank for rank in path if rank >= 0) for path in found[f"{key}paths"].tolist()])
    np.testing.assert_array_equal(shape.depth, found[f"{key}position_ids"])
    np.testing.assert_array_equal(shape.ancestors, found[f"{key}mask"])
    leaves = {tuple(node for node in row if node >= 0) for row in found[f"{key}retrieve_indices"].tolist()}
    own = [node for node in range(shape.size) if node not in shape.parents]
    assert {tuple(np.flatnonzero(shape.ancestors[node]).tolist()) for node in own} == leaves
    data = {"mc_sim_7b_63.": trees.MC_SIM_7B_63, "": trees.EAGLE_25}
    assert data.get(key, shape) == shape


def medusa_variants():
    return [
        (folder, folder.removeprefix("medusa1_") if folder != "medusa1" else "1layer")
        for folder in records.folders("medusa1*")
    ]


@pytest.mark.parametrize(("folder", "variant"), medusa_variants())
def test_medusa_heads(folder, variant):
    found, made = records.record("medusa"), records.draft(folder)
    variant = "1layer" if variant == "safetensors" else variant
    for text in records.texts(found):
        f = jnp.moveaxis(fused(made, final(found[f"{text}.f"])), -1, 0)
        recorded = found[f"{text}.logits_{variant}"]
        for head in range(made.drafter.network.depth):
            records.close(made.drafter.network.logits(made.params, f, head)[:, 0].T, recorded[head])


def test_medusa_trees():
    found, made = records.record("medusa_tree"), records.draft("medusa1")
    shape = trees.static([tuple(rank for rank in path if rank >= 0) for path in found["small.paths"].tolist()])
    tokens = {text: records.record("medusa")[f"{text}.tokens"] for text in records.texts(records.record("medusa"))}
    for case in sorted({key.split(".")[1] for key in found if key.startswith("cand.")}):
        value = lambda field, case=case: found[f"cand.{case}.{field}"]  # noqa: E731
        prefix = [*tokens[case[0]][: int(value("prefix_len"))].tolist(), int(value("tree_tokens")[0])]
        tree = grown(made, shape, *begun(made, prefix))
        np.testing.assert_array_equal(tree.tokens[0], value("tree_tokens"))
        model = records.target()
        state, _ = prefill(model.network, model.params, records.request_of(prefix), len(prefix) + shape.size)
        choices, verdict, *_ = tree_pass(VerifyTarget(model.network), model.params, state.cache, state.progress, tree)
        assert int(verdict.num_accepted[0]) == int(value("accept"))
        assert int(choices.tokens[0, 0]) == int(np.argmax(value("tree_logits")[0]))


def walked(shape, tokens, logits):
    tree = shape.tree(jnp.asarray(tokens)[None])
    verdict, _ = longest_path(tree, jnp.asarray(np.argmax(logits, axis=-1))[None], jnp.zeros(1, jnp.int32))
    return int(verdict.num_accepted[0]), int(verdict.next_token[0])


def test_made_up_verifications():
    found = records.record("medusa_tree")
    shape = trees.static([tuple(rank for rank in path if rank >= 0) for path in found["small.paths"].tolist()])
    cases = zip(
        found["cases.tree_tokens"], found["cases.tree_logits"], found["cases.accept"], found["cases.bonus"], strict=True
    )
    for tokens, logits, accepted, bonus in cases:
        assert walked(shape, tokens, logits) == (accepted, bonus)
    assert walked(shape, found["padbug.tree_tokens"], found["padbug.tree_logits"])[0] == found["padbug.accept_true"]
    hydra = records.record("hydra_posterior")
    assert walked(shape, hydra["padguard.tree_tokens"], hydra["padguard.tree_logits"])[0] == hydra["padguard.accept"]


@pytest.mark.parametrize("name", records.folders("hydra*"))
def test_hydra_heads_and_trees(name):
    found, made = records.record("hydra"), records.draft(name)
    network = made.drafter.network
    shape = trees.static([tuple(rank for rank in path if rank >= 0) for path in found["small.paths"].tolist()])
    for text in records.texts(found):
        tokens, recorded = found[f"{text}.tokens"], found[f"{name}.{text}.tf_logits"]
        inputs = jnp.moveaxis(fused(made, final(found[f"{text}.f"])), -1, 0)[:, :, :-1]
        for head in range(network.depth):
            x, logits, _ = records.run(made, inputs, tokens[1 + head :], attend=causal(), depth=head)
            if head == 0 and f"{name}.{text}.prefix_embedding" in found:
                s = x[network.target_width : 2 * network.target_width, 0].T
                records.close(s, found[f"{name}.{text}.prefix_embedding"][:-1])
            records.close(logits[:, 0].T, recorded[head, : -1 - head])
            inputs = network.following(made.params, x)[:, :, :-1]
        for turn in ("tree", "tree.round2"):
            if f"{name}.{text}.{turn}.tokens" not in found:
                continue
            length, drafted = int(found[f"{name}.{text}.{turn}.prefix_len"]), found[f"{name}.{text}.{turn}.tokens"]
            tree = grown(made, shape, *begun(made, [*tokens[:length].tolist(), int(drafted[0])]))
            np.testing.assert_array_equal(tree.tokens[0], drafted)


FLAGS = ["norm_before_residual", "norm_before_fc", "norm_output", "theta", "epsilon", "taps"]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_setting_that_is_wrong_changes_the_logits(flag):
    found, made = records.record("eagle3_spec_31"), records.draft("eagle3_spec_31")
    network, tokens = made.drafter.network, found["a.tokens"]
    rotary, block = network.config.attention.rotary, network.config.block
    other = {
        "theta": lambda: replace(
            network,
            config=replace(
                network.config, attention=replace(network.config.attention, rotary=replace(rotary, theta=7.0))
            ),
        ),
        "epsilon": lambda: replace(network, config=replace(network.config, block=replace(block, epsilon=1e-3))),
        "taps": lambda: replace(
            network, reads=network.reads._replace(taps=tuple(tap - 1 for tap in network.reads.taps))
        ),
    }.get(flag, lambda: replace(network, **{flag: False}))()
    fusion = {
        name: part for name, part in made.params["fusion"].items() if flag != "norm_before_fc" or name == "matrix"
    }
    params = made.params | {"fusion": fusion}
    wrong = Draft(replace(made.drafter, network=other), params)

    def logits(draft):
        state, root = begun(draft, tokens[:11])
        return np.asarray(draft.drafter.network.logits(draft.params, chained(draft, state, root), 0))

    def chained(draft, state, root):
        x, _, rows = records.run(
            draft, state.recent.newest, [root.token[0]], 9, state.cache, cached(jnp.asarray([[9]]))
        )
        node = draft.drafter.network.following(draft.params, x)
        return records.run(draft, node, [3], 10, rows, cached(jnp.asarray([[10]])))[0]

    own, flipped = logits(made), logits(wrong)
    finite = np.isfinite(own)
    assert np.abs(own[finite] - flipped[finite]).max() > 1e-2
