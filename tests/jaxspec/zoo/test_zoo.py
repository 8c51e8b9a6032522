"""Embedded pairs: save and load, errors that name the damaged file, held-out roles kept out of training."""

import json
import struct
from functools import cache
from importlib import resources

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import jaxspec
from jaxspec import LogitLens, zoo
from jaxspec.federated import continued, read_roles, split_roles
from jaxspec.text.tokenizer import encode, train_tokenizer
from jaxspec.training import accepted_tokens
from jaxspec.verify.exits import init_affine_lens
from jaxspec.zoo.recipe import PairRecipe, corpus, held_out_ids
from tests.support.jaxspec import models

EMBEDDED = resources.files("jaxspec.zoo") / "shakespeare"
EXITS = {"logit lens": LogitLens(), "affine": init_affine_lens(models.TARGET.width, 2, jax.random.key(0))}


def tiny(exit_head=LogitLens()):  # noqa: B008
    tokenizer = train_tokenizer(["abcdefghij"])
    return zoo.Pair(models.target(), models.draft(), exit_head, 2, tokenizer, {"bits": {"target": 1.5}})


def rounded(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), tree)


@pytest.fixture
def folder(tmp_path):
    zoo.save(tiny(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("exit_head", EXITS.values(), ids=EXITS.keys())
def test_a_saved_pair_is_loaded_in_bfloat16_precision(tmp_path, exit_head):
    pair = tiny(exit_head)
    zoo.save(pair, tmp_path / "new" / "pair")
    loaded = zoo.load(tmp_path / "new" / "pair")
    for name in ("target", "draft"):
        chex.assert_trees_all_equal(getattr(loaded, name).params, rounded(getattr(pair, name).params))
        assert getattr(loaded, name).network.config == getattr(pair, name).network.config
    assert type(loaded.exit) is type(exit_head)
    chex.assert_trees_all_equal(loaded.exit, rounded(exit_head))
    assert (loaded.exit_layer, loaded.figures) == (pair.exit_layer, pair.figures)
    assert loaded.tokenizer.get_vocab() == pair.tokenizer.get_vocab()
    assert loaded.tokenizer.decode(encode(loaded.tokenizer, "abba").tolist()) == "abba"


def test_a_loaded_pair_decodes(folder):
    pair = zoo.load(folder)
    text = [models.greedy_text(pair.target, prompt, 8) for prompt in models.PROMPTS]
    method = models.mirror(target=pair.target, draft=pair.draft, exit_layer=pair.exit_layer, exit=pair.exit)
    assert jaxspec.generate(method, models.PROMPTS, 8).tokens == text


@pytest.mark.parametrize("name", ["milton", "", "shakespeare/pair"])
def test_unknown_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"expected one of .*'shakespeare'.*got '{name}'"):
        zoo.load(name)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "pair.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"pair\.safetensors: expected a readable safetensors file"):
        zoo.load(folder)


@pytest.mark.parametrize("name", ["target.layers.3.attention.qkv", "draft.embedding", "draft.layers.0.mlp_norm.scale"])
@pytest.mark.parametrize("change", ["missing", "another shape"])
def test_a_weight_of_another_shape_is_named(folder, name, change):
    weights = safetensors.load_file(folder / "pair.safetensors")
    weight = weights.pop(name)
    if change == "another shape":
        weights[name] = np.ascontiguousarray(weight[:-1])
    safetensors.save_file(weights, folder / "pair.safetensors")
    with pytest.raises(ValueError, match=f"weight {name}: expected shape .*got"):
        zoo.load(folder)


def header(path):
    """The JSON header of a safetensors file: dtype and shape of each weight."""
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])


def test_the_embedded_pair_is_small_and_bfloat16_on_disk():
    files = [path for path in EMBEDDED.iterdir() if path.is_file()]
    weights = sorted(path for path in files if path.name.endswith(".safetensors"))
    assert [path.name for path in weights] == ["pair.safetensors", "streams.safetensors"]
    assert sum(len(path.read_bytes()) for path in weights) <= 16 * 2**20
    for path in weights:
        assert {entry["dtype"] for name, entry in header(path).items() if name != "__metadata__"} == {"BF16"}


@cache
def embedded():
    return zoo.load("shakespeare")


def test_the_embedded_pair_is_float32_in_use():
    pair = embedded()
    leaves = jax.tree.leaves((pair.target.params, pair.draft.params, pair.exit))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert sum(leaf.size for leaf in leaves) > 1_000_000


def test_the_embedded_parts_match():
    pair = embedded()
    sizes = {pair.target.network.config.vocab_size, pair.draft.network.config.vocab_size}
    assert sizes == {pair.tokenizer.get_vocab_size()}
    assert 1 <= pair.exit_layer < pair.target.network.config.num_layers
    assert zoo.load().exit_layer == pair.exit_layer


def test_the_exit_loss_costs_at_most_one_per_cent():
    """Held-out bits per character of the target within 1 % of the same model trained without the exit loss."""
    bits = embedded().figures["held_out_bits_per_character"]
    assert bits["target"] <= 1.01 * bits["control"]


def test_held_out_roles_are_many_and_long():
    ids = held_out_ids()
    chars = {role.id: len(role.text) for role in read_roles()}
    assert len(set(ids)) == len(ids) >= 160
    assert list(ids) == sorted(ids)
    assert min(chars[i] for i in ids) >= 2000
    assert json.loads((EMBEDDED / "held_out.json").read_text()) == list(ids)


def test_held_out_roles_were_drawn_at_random():
    ids = [role.id for role in read_roles(min_chars=2000)]
    assert held_out_ids() == tuple(sorted(np.random.default_rng(0).permutation(ids)[:160].tolist()))


@pytest.mark.slow
def test_no_held_out_text_is_in_the_training_tokens():
    """Compares windows of 200 characters of every held-out role with all training text of the recipe."""
    data = corpus(PairRecipe())
    seen = data.tokenizer.decode(data.train.tolist())
    train, held_out = split_roles(read_roles(), held_out_ids())
    assert all(role.text[:200] in seen for role in train)
    leaked = [
        role.user
        for role in held_out
        for start in range(0, len(role.text) - 200, 200)
        if role.text[start : start + 200] in seen
    ]
    assert leaked == []


def test_the_embedded_pair_has_drafts_that_read_hidden_states():
    """Small, of the target's own continuations, and right about most of what it writes."""
    pair, folder = zoo.load(), EMBEDDED / "drafts"
    assert list(pair.drafts) == ["eagle", "eagle3", "hydra", "medusa"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4e6
    assert max(pair.drafts["eagle3"].drafter.reads.taps) <= pair.exit_layer
    prompt = encode(pair.tokenizer, "KING HENRY:\nOnce more")
    tokens = continued(pair.target, np.asarray([prompt], np.int32), 48).tokens
    expected = {"eagle": 4.0, "eagle3": 4.0, "hydra": 1.2, "medusa": 2.0}
    for name, least in expected.items():
        assert accepted_tokens(pair.drafts[name], pair.target, tokens, prompt_length=len(prompt)) > least
    with pytest.raises(KeyError, match="expected one of eagle, eagle3, hydra, medusa, got 'eagle2'"):
        pair.drafts["eagle2"]
