"""Where text ends and which part may be shown: stop tokens, stop strings across token borders, whole characters."""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds

import jaxspec
from jaxspec import DecoderConfig, Model, Network
from jaxspec.text.stopping import BROKEN, Written, context_of
from jaxspec.text.tokenizer import train_tokenizer

SAMPLE = "the cat sat on the mat.  The naïve 漢字 and the 😀 dog — né à Łódź, STOP\n"
BYTES, LENGTH = 256, 128


@cache
def byte_level(vocab_size=BYTES):
    """Tokens are bytes, or merges of them; a character beyond ASCII takes several."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE] * 9, trainer)
    return tokenizer


@cache
def leading_space():
    """Words have a space before them, which a decoder drops at the beginning of a text; a special token has no text."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator([SAMPLE] * 9, trainer)
    return tokenizer


@cache
def byte_fallback():
    """As in Llama: letters are tokens, other characters are bytes, and a run of bytes is decoded together."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(BYTES)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(list(parts))
    return tokenizer


TOKENIZERS = {
    "bytes": byte_level,
    "byte pairs": lambda: byte_level(300),
    "leading space": leading_space,
    "characters": lambda: train_tokenizer([SAMPLE]),
}


def grown(tokenizer, ids, chunks, stop=(), limit=None):
    """A sequence that receives its tokens in chunks, and the text shown after each."""
    row, shown, start = Written(limit or len(ids), stop_strings=stop, decode=tokenizer.decode), [""], 0
    while row.finish is None:
        size = int(next(chunks))
        part = ids[start : start + size]
        row.add(part, [0.0] * len(part))
        shown, start = [*shown, row.show()], start + size
    return row, shown


def at_random(seed):
    random = np.random.default_rng(seed)
    return iter(lambda: random.integers(1, 9), None)


@pytest.mark.parametrize("stop", [(), ("this is never generated",)], ids=["no stop", "a stop string"])
@pytest.mark.parametrize("build", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_text_is_that_of_all_tokens_at_once(build, stop):
    """For any tokens: random ones give broken characters, runs of spaces and special tokens."""
    tokenizer = build()
    ids = np.random.default_rng(1).integers(tokenizer.get_vocab_size(), size=600).tolist()
    for seed in range(3):
        row, shown = grown(tokenizer, ids, at_random(seed), stop)
        assert row.text == tokenizer.decode(ids)
        assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


@pytest.mark.parametrize("nothing", ["<s>", "▁"])
def test_tokens_without_text_remove_no_space(nothing):
    """Special tokens, and runs of spaces, before a word that has its own space."""
    tokenizer = leading_space()
    tokens = ["▁the", *[nothing] * 9, "▁the", *[nothing] * 9, "▁cat"]
    for beginning in (tokens, tokens[1:]):
        ids = [tokenizer.token_to_id(word) for word in beginning]
        row, _ = grown(tokenizer, ids, iter(lambda: 1, None))
        assert row.text == tokenizer.decode(ids)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("build", [*TOKENIZERS.values(), byte_fallback], ids=[*TOKENIZERS, "byte fallback"])
def test_only_whole_characters_are_shown(build, size):
    tokenizer, text = build(), f"{SAMPLE[:-1]} 漢字漢字 😀😀 {SAMPLE[:-1]}"
    row, shown = grown(tokenizer, tokenizer.encode(text).ids, iter(lambda: size, None))
    assert row.text == text
    assert all(text.startswith(part) for part in shown)
    assert len(set(shown)) > len(text) / 4 / size, "it is shown as it grows, not at the end"


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_a_character_cut_by_the_limit_is_broken_in_the_end_as_in_the_text_of_all_tokens(build):
    tokenizer = build()
    ids = tokenizer.encode("ab漢").ids[:-1]
    row, shown = grown(tokenizer, ids, iter(lambda: 1, None))
    assert row.text == tokenizer.decode(ids)
    assert not any(BROKEN in part for part in shown[:-1])


#: Pieces of text, each one token of its own.
PIECES = (b"one", b" tw", b"o ST", b"O", b"P th", b"P\xe6", b"\xbc\xa2", b" ST", b"OR", b"X")


def pieces(ids):
    return b"".join(PIECES[index] for index in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("ids", "stop", "text", "count", "finish"),
    [
        ([0, 1, 2, 3, 4, 9], ("STOP",), "one two ", 5, "stop"),
        ([0, 1, 2, 3, 4, 9], ("one",), "", 1, "stop"),
        ([0, 1, 2, 3, 4, 9], ("zebra", "wo S"), "one t", 3, "stop"),
        ([0, 1, 2, 3, 4, 9], ("STOP", "TOP t", "OP"), "one two ", 5, "stop"),
        ([0, 1, 2, 3, 4, 9], ("OP", "STOP th"), "one two ", 5, "stop"),
        ([0, 1, 2, 3, 4, 9], ("thX",), "one two STOP ", 6, "stop"),
        ([0, 1, 2, 3], ("STOP",), "one two STO", 4, "length"),
        ([0, 7, 2, 3, 9], ("STOP", "STORY"), "one STo STOX", 5, "length"),
        ([7, 7, 8, 9], ("STOR",), " ST ", 3, "stop"),
        ([0, 3, 5, 6], ("漢",), "oneOP", 4, "stop"),
        ([2, 3, 5], ("STOP",), "o ", 3, "stop"),
        ([2, 3, 5, 6, 9], ("STOP",), "o ", 4, "stop"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_stop_strings(ids, stop, text, count, finish, size):
    """Text is cut where the first one begins; an incomplete one is shown at the end; later tokens are dropped."""
    row, start = Written(len(ids), stop_strings=stop, decode=pieces), 0
    while row.finish is None:
        row.add(ids[start : start + size], [0.0] * len(ids[start : start + size]))
        assert text.startswith(row.show())
        start += size
    assert (row.show(), len(row.tokens), row.finish) == (text, count, finish)
    assert row.tokens == ids[:count]
    assert len(row.log_probabilities) == count


def test_a_stop_token_is_kept_and_nothing_is_taken_after_it():
    row = Written(9, frozenset({3, 4}), decode=pieces)
    assert row.add([0, 1, 3, 4, 0], [1.0, 2.0, 3.0, 4.0, 5.0]) == 3
    assert row.add([0], [1.0]) == 0
    assert (row.tokens, row.log_probabilities, row.finish) == ([0, 1, 3], [1.0, 2.0, 3.0], "stop")


def test_the_last_token_allowed_may_be_a_stop_token():
    row = Written(2, frozenset({1}))
    row.add([0, 1], [0.0, 0.0])
    assert row.finish == "stop"


# From here on a model generates a fixed text: at position p its next token is the (p + 1)-th of the text.


def replicate(params):
    return jax.tree.map(lambda _: jax.sharding.PartitionSpec(), params)


READER = Network(
    DecoderConfig(BYTES, BYTES, 1, 1, 1, 2, 1),
    embed=lambda params, tokens: jnp.zeros((BYTES, *tokens.shape)),
    blocks=lambda params, x, positions, cache, attend, layers: (x + jnp.moveaxis(params[positions], -1, 0), cache),
    logits=lambda params, x: x,
    partition=replicate,
)
METHODS = {
    "autoregressive": jaxspec.autoregressive,
    "speculative": lambda model: jaxspec.speculative(model, model, 5),
}
OUTPUT = " Naïve 漢字, 😀 and the end. STOP here, STORY there. The end 漢字"


@pytest.fixture(params=METHODS)
def method(request):
    """Generates ``OUTPUT``: after a prompt of n tokens, from its n-th byte on."""
    ids = byte_level().encode(OUTPUT).ids
    table = np.zeros((LENGTH, BYTES), np.float32)
    table[np.arange(len(ids) - 1), ids[1:]] = 9.0
    return METHODS[request.param](Model(READER, jnp.asarray(table)))


def both_ways(method, stop=None, less=0):
    """The generated and the streamed text; both complete except ``less`` bytes at the end."""
    count, options = len(OUTPUT.encode()) - 1 - less, {"stop": stop, "tokenizer": byte_level()}
    result = jaxspec.generate(method, [[0]], count, **options)
    return result, list(jaxspec.stream(method, [0], count, **options))


@pytest.mark.parametrize(
    ("stop", "text", "finish"),
    [
        (None, OUTPUT[1:], "length"),
        (["STOP"], "Naïve 漢字, 😀 and the end. ", "stop"),
        ("STOP", "Naïve 漢字, 😀 and the end. ", "stop"),
        (["字", "STOP"], "Naïve 漢", "stop"),
        (["STORK", "STORY"], "Naïve 漢字, 😀 and the end. STOP here, ", "stop"),
        (["STOLE", "字 and more"], OUTPUT[1:], "length"),
        (["\n", "end", " the"], "Naïve 漢字, 😀 and", "stop"),
    ],
    ids=str,
)
def test_a_stream_yields_what_is_generated(method, stop, text, finish):
    result, parts = both_ways(method, stop)
    assert result.text == ["".join(parts)] == [text]
    assert result.finish_reason == [finish]
    assert len(parts) > 1
    assert "" not in parts
    assert not any(BROKEN in part for part in parts)
    assert byte_level().decode(result.tokens[0]).startswith(text)


def test_stop_tokens_and_strings_together(method):
    comma = byte_level().token_to_id(",")
    result, parts = both_ways(method, [comma, "😀"])
    assert result.tokens[0][-1] == comma
    assert result.tokens[0].count(comma) == 1
    assert result.text == ["".join(parts)] == ["Naïve 漢字,"]
    assert result.finish_reason == ["stop"]


def test_a_stream_is_cut_at_its_limit_like_the_text(method):
    """Within a character."""
    result, parts = both_ways(method, less=1)
    assert result.text == ["".join(parts)] == [f"{OUTPUT[1:-1]}{BROKEN}"]
    assert not any(BROKEN in part for part in parts[:-1])


@pytest.mark.parametrize(
    "method", ["autoregressive", pytest.param("speculative", marks=pytest.mark.slow)], indirect=True
)
def test_a_stop_does_not_touch_neighbours(method):
    """Three sequences generate one text from different positions on; each ends at its own stop or limit."""
    starts, limits = (1, 34, 50), (60, 56, 54)
    prompts = [[0] * start for start in starts]
    together = jaxspec.generate(method, prompts, limits, stop=["STOP"], tokenizer=byte_level())
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        alone = jaxspec.generate(method, [prompt], limit, stop=["STOP"], tokenizer=byte_level())
        assert together.tokens[index] == alone.tokens[0]
        assert together.text[index] == alone.text[0]
        assert together.finish_reason[index] == alone.finish_reason[0]
        assert together.log_probabilities[index] == pytest.approx(alone.log_probabilities[0], abs=1e-6)
    assert together.finish_reason == ["stop", "stop", "length"]
    assert together.stats.new_tokens == sum(map(len, together.tokens))


def test_stop_tokens_of_the_target_are_the_default():
    """An empty list means no stop tokens."""
    ids = byte_level().encode(OUTPUT).ids
    table = jnp.asarray(np.eye(BYTES, dtype=np.float32)[[*ids[1:], *[0] * (LENGTH + 1 - len(ids))]])
    text = jaxspec.Text.of(byte_level(), stop=(byte_level().token_to_id("v"),))
    method = jaxspec.autoregressive(Model(READER, table, text))
    assert jaxspec.generate(method, [[0]], 20).text == ["Naïv"]
    assert jaxspec.generate(method, [[0]], 20, stop=[]).finish_reason == ["length"]
    assert jaxspec.generate(method, [[0]], 20, stop=["ï"]).text == ["Na"]
    assert "".join(jaxspec.stream(method, [0], 20)) == "Naïv"


@cache
def marked():
    """The text of ``MARKED`` by a tokenizer whose first tokens have spaces; <s> ends it. Returns the ids."""
    tokenizer = leading_space()
    return [*tokenizer.encode("the cat sat on the mat.").ids, 0, *tokenizer.encode("STOP the dog").ids]


def scripted(ids, text=None):
    """A model that, after a prompt of n tokens, generates the ids from the n-th on."""
    table = 9 * np.eye(BYTES, dtype=np.float32)[[*ids[1:], *[0] * (LENGTH + 1 - len(ids))]]
    return Model(READER, jnp.asarray(table), text)


@pytest.mark.parametrize("build", METHODS.values(), ids=METHODS)
def test_the_text_of_a_special_token_ends_a_sequence(build):
    """The token is left out of the text, so a search in the text would miss it."""
    ids, end = marked(), marked().index(0)
    method, options = build(scripted(ids)), {"tokenizer": leading_space()}
    result = jaxspec.generate(method, [ids[:2], ids[:5]], 24, stop=["<s>"], **options)
    assert result.tokens == [ids[2 : end + 1], ids[5 : end + 1]]
    assert result.finish_reason == ["stop", "stop"]
    assert result.text[0].endswith(" mat.")
    assert "".join(jaxspec.stream(method, ids[:2], 24, stop="<s>", **options)) == result.text[0]


def test_a_special_token_within_a_stop_text_is_refused():
    method = jaxspec.autoregressive(scripted(marked()))
    with pytest.raises(ValueError, match=r"stop strings without special tokens, .*'<s> and'; pass '<s>' alone"):
        jaxspec.generate(method, [[1]], 4, stop=["<s> and"], tokenizer=leading_space())


@pytest.mark.parametrize("cut", range(1, 9))
def test_text_continues_that_of_the_prompt(cut):
    """With the space that a decoder leaves out at the beginning of a text."""
    tokenizer, ids = leading_space(), marked()
    method, prompt = jaxspec.autoregressive(scripted(ids)), tokenizer.decode(ids[:cut])
    result = jaxspec.generate(method, [ids[:cut]], 8, tokenizer=tokenizer)
    assert prompt + result.text[0] == tokenizer.decode(ids[: cut + 8])
    assert "".join(jaxspec.stream(method, ids[:cut], 8, tokenizer=tokenizer)) == result.text[0]


def test_a_stop_text_may_begin_with_the_first_space():
    tokenizer, ids = leading_space(), marked()
    cut = next(index for index in range(1, 9) if tokenizer.id_to_token(ids[index]).startswith("▁"))
    method = jaxspec.autoregressive(scripted(ids))
    assert jaxspec.generate(method, [ids[:cut]], 8, stop=[" "], tokenizer=tokenizer).text == [""]


def test_a_prompt_that_ends_within_a_character():
    """Its last bytes are completed by the first new tokens, which show the whole character."""
    tokenizer = byte_level()
    ids = tokenizer.encode("né 漢字!").ids
    for cut in range(1, len(ids)):
        row = Written(len(ids), decode=tokenizer.decode, context=ids[:cut])
        row.add(ids[cut:], [0.0] * len(ids[cut:]))
        row.finish = "length"
        assert tokenizer.decode(ids[:cut]).rstrip(BROKEN) + row.show() == "né 漢字!"


@pytest.mark.parametrize("length", [1, 3, 60])
def test_a_prompt_of_nothing_but_special_tokens_at_its_end(length):
    """Its last tokens have no text, but decoding continues the text before them."""
    tokenizer = leading_space()
    prompt, new = [*tokenizer.encode("the").ids, *[0] * length], tokenizer.encode("cat").ids
    context = context_of(tokenizer.decode, prompt)
    row = Written(len(new), decode=tokenizer.decode, context=context)
    row.add(new, [0.0] * len(new))
    assert row.show() == " cat"


def test_stop_tokens_of_a_target_that_has_no_tokenizer():
    """Without a tokenizer, and with one passed as an argument."""
    ids, end = marked(), marked().index(0)
    method = jaxspec.autoregressive(scripted(ids, jaxspec.Text(stop=(0,))))
    for options in ({}, {"tokenizer": leading_space()}):
        result = jaxspec.generate(method, [ids[:2]], 24, **options)
        assert result.tokens == [ids[2 : end + 1]]
        assert (result.text is None) == (not options)
    assert "".join(jaxspec.stream(method, ids[:2], 24, tokenizer=leading_space())) == result.text[0]
    for prompts in (["the cat"], [[{"role": "user", "content": "the cat"}]]):
        with pytest.raises(ValueError, match="expected token ids, got text; pass tokenizer="):
            jaxspec.generate(method, prompts, 4)
    with pytest.raises(ValueError, match="expected a tokenizer to write text with"):
        next(jaxspec.stream(method, [1], 4))
    with pytest.raises(ValueError, match="with a tokenizer"):
        jaxspec.generate(method, [[1]], 4, stop=["x"])
