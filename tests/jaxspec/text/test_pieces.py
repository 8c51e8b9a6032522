"""SentencePiece models with added tokens: ids and texts as in transformers, without crashes."""

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import jaxspec
from jaxspec import Text

STORIES = Path(__file__).parents[2] / "data" / "stories260K"
SAMPLE = "the cat sat on the mat and the dog ran to the cat. naïve cats say: 123!\n"
PLAIN = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def token(content, special=True, **flags):
    return (
        {"content": content, "special": special, "normalized": False}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        | flags
    )


@pytest.fixture(scope="module")
def model():
    """As Llama 2's: byte pairs, bytes for what has no piece, spaces kept. Returns its bytes."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SAMPLE] * 9),
        model_writer=out,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return out.getvalue()


SIZE = 310


@pytest.fixture
def folder(tmp_path, model):
    """A folder whose only tokenizer is a SentencePiece model, with this in its configuration."""

    def write(about=None, **files):
        (tmp_path / "tokenizer.model").write_bytes(model)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(PLAIN | (about or {})))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


ADDED = {str(SIZE): token("<|im_end|>"), str(SIZE + 1): token("[x]", special=False, lstrip=True)}
CONFIGS = {
    "no beginning": {"add_bos_token": False, "legacy": False},
    "both ends": {"add_bos_token": True, "add_eos_token": True, "legacy": False},
    "legacy": {"add_bos_token": True, "legacy": True},
    "not legacy": {"add_bos_token": True, "legacy": False},
    "no space first": {"add_bos_token": True, "legacy": False, "add_prefix_space": False},
    "added": {"add_bos_token": True, "legacy": False, "added_tokens_decoder": ADDED},
    "older files": {"add_bos_token": True, "legacy": False},
}
TEXTS = ["the cat", "the  cat</s>sat <s> dog", "</s>the cat", "a [x]dog<|im_end|>dog", "the 漢 [x]", "[x]<|im_end|>"]


@pytest.mark.peers("transformers")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_file_is_read_as_transformers_does(folder, monkeypatch, name):
    import transformers
    from transformers.utils import sentencepiece_model_pb2_new

    # The sentencepiece package brings a protocol that is newer than the protobuf library of this environment.
    converters = importlib.import_module("transformers.convert_slow_tokenizer")
    monkeypatch.setattr(converters, "import_protobuf", lambda *_: sentencepiece_model_pb2_new)
    older = {"added_tokens": {"<|im_end|>": SIZE}, "special_tokens_map": {"pad_token": "<|im_end|>"}}
    path = folder(CONFIGS[name], config={"model_type": "llama"}, **(older if name == "older files" else {}))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), Text.read(path)
    # After a special token they drop the second of two spaces, which SentencePiece and older versions keep.
    for text in TEXTS if name != "legacy" else [text.replace("> dog", ">dog") for text in TEXTS]:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("about", "begin", "end"),
    [({}, [1], []), ({"add_bos_token": False}, [], []), ({"add_bos_token": None, "add_eos_token": True}, [1], [2])],
)
def test_what_is_put_before_and_after_a_sequence(folder, about, begin, end):
    text = Text.read(folder(about))
    inner = text.encode_marked("the cat").tolist()
    assert text.encode("the cat").tolist() == [*begin, *inner, *end]
    assert not {1, 2} & set(inner)


@pytest.mark.parametrize(("legacy", "follows"), [({}, "▁the"), ({"legacy": True}, "▁the"), ({"legacy": False}, "the")])
def test_the_space_after_a_special_token(folder, legacy, follows):
    text = Text.read(folder(legacy))
    ids = text.encode("the cat</s>the cat").tolist()
    split = ids.index(2)
    assert "".join(map(text.piece, ids[1:split])) == "▁the▁cat"
    assert "".join(map(text.piece, ids[split + 1 :])) == f"{follows}▁cat"


@pytest.mark.parametrize("where", ["added_tokens_decoder", "added_tokens.json"])
def test_added_tokens(folder, where):
    """Special ones are left out of the text, others are not; each is one token."""
    older = {"added_tokens": {"<|im_end|>": SIZE, "[x]": SIZE + 1}}
    about, files = {"additional_special_tokens": ["<|im_end|>"]}, older
    if where == "added_tokens_decoder":
        about, files = {where: ADDED}, {}
    text = Text.read(folder(about, **files))
    ids = text.encode("the cat[x]<|im_end|>").tolist()
    assert ids[-2:] == [SIZE + 1, SIZE]
    assert text.decode(ids) == "the cat[x]"
    assert text.special_ids["<|im_end|>"] == text.special_ids["</s>"] + SIZE - 2
    assert [text.piece(number) for number in (SIZE, SIZE + 1, SIZE + 2)] == ["<|im_end|>", "[x]", None]


def test_an_added_token_replaces_an_unused_piece(folder):
    text = Text.read(folder({"added_tokens_decoder": {"300": token("<|tool|>")}}))
    assert text.encode("<|tool|>").tolist() == [1, 300]
    assert text.piece(300) == "<|tool|>"


def test_an_added_token_under_another_id_is_refused(folder):
    with pytest.raises(ValueError, match=r"expected the token '</s>' at id 7, .* got id 2 in the vocabulary"):
        Text.read(folder({"added_tokens_decoder": {"7": token("</s>")}}))


def test_ids_beyond_the_vocabulary_have_no_text(folder):
    """Ids of the rows that pad an embedding."""
    text = Text.read(folder())
    ids = text.encode("the cat").tolist()
    assert text.decode([SIZE, *ids, SIZE + 99]) == "the cat"


@pytest.mark.parametrize("string", ["the cat", "the  cat 漢字 😀", "naïve", "123 dogs:\n\tcats!"])
def test_round_trip(folder, string):
    text = Text.read(folder({"legacy": False}))
    assert text.decode(text.encode(string)) == string
    assert text.decode(text.encode(f"</s>{string}")) == string


@pytest.mark.parametrize("prefix", [True, False])
def test_a_model_that_puts_no_space_first(tmp_path, prefix):
    """As in Gemma: its texts keep their first space."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SAMPLE] * 9), model_writer=out, model_type="bpe", vocab_size=60,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    text = Text.read(tmp_path)
    assert text.piece(text.encode("the cat")[1]).startswith("▁") == prefix
    for string in ("the cat", " the cat"):
        assert text.decode(text.encode(string)) == string


def test_a_padded_vocabulary_is_generated_with(folder, tmp_path):
    """Every id that a model can generate: its vocabulary is larger than the tokenizer's."""
    config = jaxspec.DecoderConfig(384, 8, 1, 2, 1, 4, 8)
    import jax

    model = jaxspec.decoder(config, jax.random.key(0))._replace(text=Text.read(folder()))
    result = jaxspec.generate(jaxspec.autoregressive(model), ["the cat"] * 16, 8, temperature=9.0, stop=[])
    assert np.max(result.tokens) >= SIZE
    assert len(result.text) == 16


@pytest.mark.parametrize("cut", [4, 11])
def test_a_continuation_keeps_its_first_space(cut):
    """What a published Llama-like model writes after a prompt of whole words starts with a space."""
    model = jaxspec.load_llama2c(STORIES / "stories260K.bin", STORIES / "tok512.model")
    method, prompt = jaxspec.autoregressive(model), "Once upon a time"[:cut]
    result = jaxspec.generate(method, [prompt], 8)
    assert result.text[0].startswith(" ")
    assert prompt + result.text[0] == model.text.decode([*model.text.encode(prompt), *result.tokens[0]])
    assert "".join(jaxspec.stream(method, prompt, 8)) == result.text[0]
    assert jaxspec.generate(method, [prompt], 8, stop=[result.text[0][:3]]).text == [""]
