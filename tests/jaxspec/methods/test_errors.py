"""Bad input is refused before any work starts, with what was expected, what came, and often the remedy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jaxspec
from jaxspec import DecoderConfig, Sampling, Text
from jaxspec.cli import _methods as methods
from jaxspec.methods import candidates, fallbacks
from jaxspec.text.tokenizer import train_tokenizer
from jaxspec.verify import acceptance
from jaxspec.verify.exits import init_affine_lens
from tests.support.jaxspec import models


def other_vocabulary():
    return models.random_model(replace(models.DRAFT, vocab_size=12), 0)


def cast(dtype):
    return models.target()._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), models.target().params))


def generate(prompts, max_new_tokens=4, **options):
    return jaxspec.generate(jaxspec.autoregressive(models.target()), prompts, max_new_tokens, **options)


def stream(prompt, **options):
    return jaxspec.stream(jaxspec.autoregressive(models.target()), prompt, 4, **options)


#: What is done, and what the message must say.
TABLE = {
    "rows for the prompts alone": (
        lambda: models.speculative(3).init(models.request(max_new_tokens=30), 34),
        r"expected a capacity of at least \d+ rows .*got 34; take prompt",
    ),
    "rows below a padded prompt": (
        lambda: jaxspec.autoregressive(models.target()).init(models.request(max_new_tokens=1), 16),
        "expected a capacity of at least 33 rows",
    ),
    "speculative window 0": (lambda: models.speculative(0), "expected 1 <= window.*got 0; for none"),
    "speculative window -2": (lambda: models.speculative(-2), "expected 1 <= window.*got -2"),
    "mirror window 0": (lambda: models.mirror(window=0), "expected 1 <= window.*got 0"),
    "no candidates": (lambda: models.mirror(num_candidates=0), "expected 1 <= num_candidates.*got 0"),
    "negative candidates": (lambda: models.mirror(num_candidates=-1), "expected 1 <= num_candidates.*got -1"),
    "more candidates than tokens": (
        lambda: models.mirror(num_candidates=11),
        "num_candidates <= 10.*got 11; the vocabulary has 11",
    ),
    "exit layer 0": (lambda: models.mirror(exit_layer=0), "expected 1 <= exit_layer <= 4.*got 0"),
    "exit layer N + 1": (lambda: models.mirror(exit_layer=5), "expected 1 <= exit_layer <= 4.*got 5"),
    "speculative vocabulary": (
        lambda: models.speculative(draft=other_vocabulary()),
        "expected target and draft over one vocabulary, got 11 and 12",
    ),
    "mirror vocabulary": (
        lambda: models.mirror(draft=other_vocabulary()),
        "expected target and draft over one vocabulary, got 11 and 12",
    ),
    "an exit head of a wider model": (
        lambda: models.mirror(exit=init_affine_lens(32, 2, jax.random.key(0))),
        "expected an exit head for this target, got another model's",
    ),
    "an exit head over other tokens": (
        lambda: models.mirror(exit=lambda network, params, x: x),
        r"expected an exit head over 11 tokens, got logits of shape \(16, 1, 1\)",
    ),
    "meshes that overlap in part": (
        lambda: models.mirror(
            placement=jaxspec.Placement(jaxspec.mesh_of(jax.devices()[:2]), jaxspec.mesh_of(jax.devices()[1:2]))
        ),
        "expected target and draft on disjoint meshes, or both on one, got 1 devices in both",
    ),
    "more of the draft's candidates than tokens": (
        lambda: models.mirror(policy=candidates.saguaro(num_candidates=11)),
        "expected 1 <= num_candidates of the policy <= 10, a whole number, got 11",
    ),
    "an unknown policy": (
        lambda: methods.policy_named("mirrors", 4),
        "expected a policy out of none, pearl, saguaro, ahead, mirror, hybrid, got 'mirrors'",
    ),
    "all candidates of a long window": (
        lambda: models.mirror(window=64, num_candidates=8),
        r"expected at most 512 branches, got 520: all κ·\(γ\+1\) = 8·\(64\+1\) candidates; give the policy a budget",
    ),
    "streams that a draft lacks": (
        lambda: methods.method_of(
            methods.Loaded(models.target(), models.draft()), "mirror", methods.Drafting(streams=2)
        ),
        "expected 0 to 0 streams, as many as the draft has, got 2; jaxspec.streaming makes",
    ),
    "budget 0": (lambda: candidates.mirror(0), "expected 1 <= budget .*got 0; without a limit"),
    "no prompts": (lambda: generate([]), "expected at least one prompt, got none"),
    "text that is no list": (lambda: generate("abc"), r"expected a list of prompts, got a single one; pass \[prompt\]"),
    "messages that are no list": (lambda: generate([{"role": "user"}]), "expected a list of prompts, got a single one"),
    "an empty prompt": (lambda: generate([[1, 2], []]), r"prompt 1: expected at least one token, got shape \(0,\)"),
    "a nested prompt": (lambda: generate([[[1, 2]]]), r"prompt 0: expected .*got shape \(1, 2\)"),
    "a negative token": (
        lambda: generate([[1], [3, -1]]),
        r"prompt 1: expected token ids in \[0, 11\), got -1 at position 1",
    ),
    "a token too large": (lambda: generate([[11]]), r"prompt 0: expected token ids in \[0, 11\), got 11"),
    "a prompt too long": (
        lambda: generate([[1], [1] * 61], max_length=64),
        r"prompt 1: expected .* fit the cache of 64, got 61 \+ 4",
    ),
    "no new tokens": (lambda: generate([[1]], 0), "expected max_new_tokens >= 1, got 0"),
    "no new tokens for one": (lambda: generate([[1], [2]], [4, 0]), r"expected max_new_tokens >= 1, got \[4, 0\]"),
    "a negative temperature": (lambda: Sampling(temperature=-0.1), "expected temperature >= 0, got -0.1"),
    "no temperature": (lambda: Sampling(temperature=float("nan")), "expected temperature >= 0, got nan"),
    "top-p 0": (lambda: Sampling(top_p=0.0), r"expected top_p in \(0, 1\], got 0.0"),
    "top-p above 1": (lambda: Sampling(top_p=1.1), r"expected top_p in \(0, 1\], got 1.1"),
    "a negative top-k": (
        lambda: Sampling(top_k=-1),
        r"expected top_k >= 0 \(0: all tokens\) and < 2\^31, got -1",
    ),
    "half a token": (lambda: Sampling(top_k=2.5), "expected top_k to be whole numbers, got 2.5"),
    "a top-k that would wrap to 1": (
        lambda: Sampling(top_k=2**32 + 1),
        r"expected top_k >= 0 \(0: all tokens\) and < 2\^31, got 4294967297",
    ),
    "a flag for a count": (lambda: Sampling(top_k=True), "expected top_k to be whole numbers, got True"),
    "a flag for a number": (lambda: Sampling(temperature=True), "expected temperature to be numbers, got True"),
    "no number at all": (lambda: Sampling(top_p=None), "expected top_p to be numbers, got None"),
    "a seed beyond every type": (lambda: Sampling(seed=2**70), r"expected seed in \[0, 2\^32\), got 1180"),
    "new tokens beyond every type": (lambda: generate([[1]], 2**70), "fit the cache of 4096, got 1 [+] 1180"),
    "new tokens that would wrap to 3": (lambda: generate([[1]], 2**32 + 3), "fit the cache of 4096, got 1 [+] 42949"),
    "half a token of a prompt": (
        lambda: generate([[1], [3, 5.7]]),
        "expected token ids of prompt 1 to be whole numbers, got 5.7 at position 1",
    ),
    "a token that would wrap to 5": (
        lambda: generate([[1, 2**32 + 5]]),
        r"prompt 0: expected token ids in \[0, 11\), got 4294967301 at position 1",
    ),
    "an array's token that would wrap to 5": (
        lambda: generate([np.array([2**32 + 5])]),
        r"prompt 0: expected token ids in \[0, 11\), got 4294967301 at position 0",
    ),
    "a token beyond every type": (lambda: generate([[2**70]]), r"expected token ids in \[0, 11\), got 1180591620717"),
    "flags as tokens": (lambda: generate([[True, False]]), "token ids of prompt 0 to be whole numbers, got True at"),
    "no number among the tokens": (lambda: generate([[1, float("nan")]]), "to be whole numbers, got nan at position 1"),
    "text among the tokens": (lambda: generate([[1, "2"]]), "to be whole numbers, got '1' at position 0"),
    "nothing among the tokens": (lambda: generate([[1, None]]), "to be whole numbers, got None at position 1"),
    "tokens at two depths": (
        lambda: generate([[1, [2]]]),
        r"token ids of prompt 0 to be whole numbers, got \[1, \[2\]\]",
    ),
    "tokens that are no list": (lambda: generate([1, 2]), "expected a list of prompts, got a single one"),
    "half a stop token": (lambda: generate([[1]], stop=[5.7]), "expected stop tokens to be whole numbers, got 5.7"),
    "a stop token that would never come": (
        lambda: generate([[1]], stop=[3, 11]),
        r"stop: expected token ids in \[0, 11\), got 11 at position 1",
    ),
    "a flag as stop token": (
        lambda: generate([[1]], stop=[True]),
        "expected stop tokens to be whole numbers, got True",
    ),
    "half a row of the cache": (
        lambda: generate([[1]], max_length=64.5),
        "max_length <= 1073741824, a whole number, got",
    ),
    "more rows than positions": (
        lambda: generate([[1]], max_length=2**31),
        "max_length <= 1073741824, .* got 2147483648",
    ),
    "half a window": (lambda: models.speculative(2.5), "expected 1 <= window .* a whole number, got 2.5"),
    "a flag for a window": (lambda: models.mirror(window=True), "expected 1 <= window .* a whole number, got True"),
    "a window beyond every cache": (
        lambda: models.speculative(2**31),
        "expected 1 <= window <= 32768, .*got 2147483648",
    ),
    "half an exit layer": (lambda: models.mirror(exit_layer=1.5), "exit_layer <= 4, a whole number, got 1.5"),
    "half a candidate": (lambda: models.mirror(num_candidates=1.5), "num_candidates <= 10, a whole number, got 1.5"),
    "half a branch": (lambda: candidates.mirror(2.5), "expected 1 <= budget .* a whole number, got 2.5"),
    "no sharpness": (lambda: candidates.mirror(2, float("inf")), "expected a finite sharpness > 0, got inf"),
    "half a word of a short window": (lambda: fallbacks.Short(1.5), "length of a short window .* got 1.5"),
    "no word to draft": (lambda: acceptance.ratio(0), "expected 1 <= top < 2.*got 0"),
    "a target too narrow to compute in": (
        lambda: jaxspec.autoregressive(cast("float8_e4m3fn")),
        "expected a target that computes in one of float32, .*, got float8_e4m3fn; cast",
    ),
    "a draft too narrow to compute in": (
        lambda: models.speculative(draft=cast("float8_e5m2")),
        "expected a draft that computes in one of float32, .*, got float8_e5m2; cast",
    ),
    "min-p above 1": (lambda: Sampling(min_p=1.5), r"expected min_p in \[0, 1\], got 1.5"),
    "a negative min-p": (lambda: Sampling(min_p=-0.5), r"expected min_p in \[0, 1\], got -0.5"),
    "no repetition penalty": (
        lambda: Sampling(repetition_penalty=0),
        "expected repetition_penalty > 0 .*, got 0",
    ),
    "a negative seed": (lambda: Sampling(seed=-1), r"expected seed in \[0, 2\^32\), got -1"),
    "a seed too large": (lambda: Sampling(seed=2**32), r"expected seed in \[0, 2\^32\), got 4294967296"),
    "temperature twice": (
        lambda: generate([[1]], temperature=0.5, sampling=Sampling(0.5)),
        r"expected temperature or sampling, got both; pass sampling=Sampling\(temperature=",
    ),
    "settings of other prompts": (
        lambda: generate([[1], [2]], sampling=Sampling([0.5, 0.5, 0.5])),
        r"expected one temperature or 2, one for each prompt, got shape \(3,\)",
    ),
    "a table of settings": (
        lambda: Sampling(top_k=[[1], [2]]),
        r"expected one top_k, or one for each prompt, got shape \(2, 1\)",
    ),
    "text without a tokenizer": (lambda: generate(["abc"]), "expected token ids, got text"),
    "messages without a tokenizer": (lambda: generate([[{"role": "user", "content": "a"}]]), "expected token ids, got"),
    "stop strings without a tokenizer": (lambda: generate([[1]], stop=["."]), "expected stop strings .*tokenizer"),
    "an empty stop string": (
        lambda: generate([[1]], stop=["a", ""], tokenizer=train_tokenizer(["abcdefghij"])),
        "expected stop strings that are not empty",
    ),
    "a stream without a tokenizer": (lambda: next(stream([1])), "expected a tokenizer to write text with"),
}


@pytest.mark.parametrize(("act", "words"), TABLE.values(), ids=TABLE.keys())
def test_bad_input(act, words):
    with pytest.raises(ValueError, match=words):
        act()


@pytest.mark.parametrize(
    "name", ["vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_size", "hidden"]
)
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_below_one(name, value):
    with pytest.raises(ValueError, match=f"expected {name} >= 1, got {value}"):
        replace(models.TARGET, **{name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_kv_heads": 3}, "expected num_heads divisible by num_kv_heads, got 4 and 3"),
        ({"head_size": 5}, "expected an even head_size.*got 5"),
    ],
)
def test_sizes_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        replace(models.TARGET, **change)


def test_the_longest_prompt_that_fits_is_taken():
    prompt = [1, 4] * 30
    assert len(generate([prompt], max_length=64).tokens[0]) == 4


def test_integers_of_any_kind_are_taken():
    expected = generate([[1, 2, 3]]).tokens
    assert generate(np.array([[1, 2, 3]], np.uint8)).tokens == expected
    assert generate([jnp.array([1, 2, 3])], np.int64(4), temperature=np.float32(0)).tokens == expected
    assert Sampling(top_k=np.uint64(2**31 - 1)) == Sampling(top_k=2**31 - 1)
    assert generate([[1.0, np.int8(2), 3]], jnp.int32(4), max_length=np.int16(64)).tokens == expected
    first = expected[0][0]
    assert generate([[1, 2, 3]], stop=first).tokens == generate([[1, 2, 3]], stop=np.array([first])).tokens == [[first]]


def test_configurations_are_values():
    assert DecoderConfig(11, 16, 4, 4, 2, 4, 16) == models.TARGET
    assert hash(replace(models.TARGET)) == hash(models.TARGET)


def test_words_of_target_and_draft_are_compared_one_by_one():
    """Vocabularies of one size over other words are the silent mistake: nothing would ever be accepted."""
    target, draft = (
        model._replace(text=Text.of(Tokenizer(WordLevel({word: index for index, word in enumerate(words)}))))
        for model, words in ((models.target(), "abcdefghijk"), (models.draft(), "abcdefgxijk"))
    )
    for build in (jaxspec.speculative, jaxspec.mirror):
        with pytest.raises(ValueError, match="one vocabulary, got 'h' and 'x' for token 7"):
            build(target, draft)
    assert jaxspec.speculative(target, draft._replace(text=target.text)).text is target.text


def test_a_draft_that_is_never_right_is_reported():
    """Its only word is one that the target does not say after this prompt."""
    prompt = [1, 5, 3]
    text = jaxspec.generate(jaxspec.autoregressive(models.target()), [prompt], 70).tokens
    word = min(set(range(models.VOCAB)) - set(text[0]))
    column = np.eye(models.VOCAB, dtype=np.float32)[word][:, None, None]
    net, params = models.draft()[:2]
    draft = jaxspec.Model(replace(net, logits=lambda params, x: column + 0 * net.logits(params, x)), params)
    with pytest.warns(RuntimeWarning, match="no drafted token was accepted in 70 steps.*same tokenizer"):
        assert jaxspec.generate(models.speculative(2, draft=draft), [prompt], 70).tokens == text


def test_prompt_lookup_that_finds_nothing_is_no_fault():
    """No warning, which is an error here."""
    found = jaxspec.generate(jaxspec.lookup(models.target(), 2, sizes=100), [[1, 5, 3]], 70)
    assert found.stats.accepted == 0
    assert found.tokens == jaxspec.generate(jaxspec.autoregressive(models.target()), [[1, 5, 3]], 70).tokens
