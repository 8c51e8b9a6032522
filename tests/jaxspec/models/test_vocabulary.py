"""Drafts whose embedding has more or fewer rows than the target's: decoding stays lossless, tokenizers are compared."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jaxspec
from jaxspec import Text
from jaxspec.loading.store import load_model, save_model
from jaxspec.models.base import Model
from jaxspec.models.vocabulary import unfitted
from jaxspec.verify import acceptance
from jaxspec.verify.sampling import SamplingArrays
from tests.support.jaxspec import models

#: Rows of the target, and tokens that the tokenizer has.
ROWS, PIECES = 72, 60
PROMPTS = [[1, 5, 3], [7, 2, 9, 4, 4, 8, 1]]
NEW_TOKENS = 12


@cache
def target():
    return models.random_model(replace(models.TARGET, vocab_size=ROWS, num_layers=2), 2)


@cache
def draft(rows):
    """The target's first layer, with fewer rows than the target or with extra rows at the end."""
    params = target().params
    spare = jax.random.normal(jax.random.key(9), (8, 16))
    table = jnp.concatenate([params["embedding"], spare])[:rows]
    config = replace(models.TARGET, vocab_size=rows, num_layers=1)
    return Model(jaxspec.models.network(config), {**params, "layers": params["layers"][:1], "embedding": table})


def text(**renamed):
    ids = {f"w{index}": index for index in range(PIECES - 2)} | {"<|a|>": PIECES - 2, "<|b|>": PIECES - 1}
    ids = {renamed.get(word.strip("<|>"), word): index for word, index in ids.items()}
    return Text.of(Tokenizer(WordLevel(ids, unk_token=next(iter(ids)))))


@cache
def read():
    return target()._replace(text=text())


def decoded(method):
    out = jaxspec.generate(method, PROMPTS, NEW_TOKENS, sampling=jaxspec.Sampling([0.0, 1.0], seed=[3, 4]))
    return out.tokens, out.stats


@cache
def plain():
    return decoded(jaxspec.autoregressive(target()))[0]


@pytest.mark.parametrize(("name", "rows"), [("speculative", 64), ("mirror", 64), ("mirror", 80)])
def test_tokens_are_those_of_plain_decoding(name, rows):
    small = draft(rows)._replace(text=text())
    make = {"speculative": models.speculative, "mirror": lambda **pair: models.mirror(exit_layer=1, **pair)}[name]
    tokens, stats = decoded(make(target=read(), draft=small))
    assert tokens == plain()
    assert stats.accepted_length > 1.2
    assert max(map(max, plain())) >= 64, "a token that the smaller draft does not have is among them"


@pytest.mark.parametrize("rows", [64, 80])
def test_nothing_beyond_either_vocabulary_is_proposed(rows):
    own, fitted = draft(rows), jaxspec.fit_vocabulary(draft(rows), ROWS)
    x = own.network.embed(own.params, jnp.asarray([[1, 2, 3]]))
    wide, narrow = (model.network.logits(model.params, x) for model in (fitted, own))
    both = min(rows, ROWS)
    assert wide.shape == (ROWS, 1, 3)
    np.testing.assert_array_equal(wide[:both], narrow[:both])
    assert np.all(np.isneginf(wide[both:]))
    one = jnp.ones(1)
    sampling = SamplingArrays(jnp.full(1, 5, jnp.uint32), one, jnp.zeros(1, jnp.int32), one, 0 * one, one)
    tokens, distribution = acceptance.ratio(top=ROWS).propose(wide, sampling, jnp.asarray([[4, 5, 6]]))
    mass = np.asarray(acceptance.dense(distribution, ROWS))
    assert np.max(tokens) < both
    assert np.all(mass[both:] == 0)
    np.testing.assert_allclose(mass.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(mass[:both], jax.nn.softmax(narrow[:both], axis=0), rtol=1e-4, atol=1e-7)


def test_the_ratio_decodes_with_a_padded_draft():
    method = jaxspec.speculative(target(), jaxspec.fit_vocabulary(draft(64), ROWS), 3, acceptance=acceptance.ratio())
    tokens, stats = decoded(method)
    assert tokens[0] == plain()[0]
    assert stats.accepted_length > 1.2


def test_a_token_that_the_draft_lacks_reads_as_its_last_one():
    own, fitted = draft(64), jaxspec.fit_vocabulary(draft(64), ROWS)
    tokens = jnp.asarray([[3, 63, 64, 71]])
    embedded = fitted.network.embed(fitted.params, tokens)
    np.testing.assert_array_equal(embedded, own.network.embed(own.params, jnp.minimum(tokens, 63)))


def test_heads_are_repeated_over_a_mesh():
    mesh = jaxspec.mesh_of(jax.devices()[:4])
    fitted = jaxspec.fit_vocabulary(draft(64), ROWS)
    assert jaxspec.devices.sharding.put_model(fitted, mesh).network.config.num_kv_heads == 4
    assert jaxspec.devices.sharding.put_model(fitted, mesh).network.config.vocab_size == ROWS


def test_a_network_is_fitted_once_and_undone():
    own = draft(64)
    fitted = jaxspec.fit_vocabulary(own, ROWS)
    assert jaxspec.fit_vocabulary(own, ROWS).network is fitted.network
    assert jaxspec.fit_vocabulary(fitted, 64).network is own.network
    assert unfitted(fitted).network is own.network
    assert jaxspec.fit_vocabulary(own, 64).network is own.network


def test_what_is_saved_has_its_own_rows(tmp_path):
    save_model(jaxspec.fit_vocabulary(draft(64), ROWS), tmp_path / "ours")
    jaxspec.save_huggingface(jaxspec.fit_vocabulary(draft(64), ROWS), tmp_path / "theirs")
    for loaded in (load_model(tmp_path / "ours"), jaxspec.load_huggingface(tmp_path / "theirs")):
        assert loaded.network.config.vocab_size == 64
        assert loaded.params["embedding"].shape == (64, 16)


#: Names of tokens of the draft's tokenizer that differ, and whether the tokenizers are still one.
RENAMED = {
    "none": ({}, None),
    "a reserved one": ({"a": "<|fim|>"}, None),
    "two reserved ones": ({"a": "[PAD]", "b": "<unused3>"}, None),
    "a word": ({"w7": "other"}, "one vocabulary, got 'w7' and 'other' for token 7"),
}


@pytest.mark.parametrize("rows", [64, ROWS])
@pytest.mark.parametrize("name", RENAMED)
def test_tokenizers_are_compared(name, rows):
    renamed, message = RENAMED[name]
    pair = {"target": read(), "draft": draft(rows)._replace(text=text(**renamed))}
    if message is None:
        assert models.speculative(**pair)
        assert models.mirror(exit_layer=1, **pair)
        return
    for make in (models.speculative, lambda **pair: models.mirror(exit_layer=1, **pair)):
        with pytest.raises(ValueError, match=message):
            make(**pair)


def test_a_tokenizer_with_fewer_tokens_is_another_one():
    ids = {f"w{index}": index for index in range(40)}
    short = draft(64)._replace(text=Text.of(Tokenizer(WordLevel(ids, unk_token="w0"))))
    with pytest.raises(ValueError, match="one vocabulary, got 'w40' and None for token 40"):
        models.speculative(target=read(), draft=short)


def test_sizes_that_differ_without_tokenizers_have_a_remedy_that_helps():
    with pytest.raises(ValueError, match=r"got 72 and 64 tokens and no two tokenizers.*fit_vocabulary\(draft, 72\)"):
        models.speculative(target=target(), draft=draft(64))
    assert models.speculative(target=target(), draft=jaxspec.fit_vocabulary(draft(64), 72))


@pytest.mark.parametrize("fit", [False, True])
def test_a_draft_to_train_needs_the_target_s_rows(fit):
    from jaxspec.federated import federate

    small = jaxspec.fit_vocabulary(draft(64), ROWS) if fit else draft(64)
    with pytest.raises(ValueError, match=r"target's 72 rows .* got 64.*resize_token_embeddings\(72\)"):
        federate(target(), small, text(), ["w1 w2"])
