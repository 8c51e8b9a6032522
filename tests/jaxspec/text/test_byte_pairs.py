"""Vocabularies of ``vocab.json`` and ``merges.txt`` alone: ids and texts of the tokenizer they were made from."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxspec.text import Text
from jaxspec.text.bpe import WORDS

TEXT = "the king shall hear of this, and 1234 men don't sleep;\n\n  my lord's héart 😀 is   heavy.\tEnter a ghost"
LINES = [TEXT, " a", "a ", "", "\n", "</s>the king", "12 345,6", "A\u0300é né", "it'S I'LL", "the\r\n king"]
SPLITS = {
    "GPT2Tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "Qwen2TokenizerFast": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS.format(digits="")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def folder_of(path, name, **about):
    """A folder with the two files, and the tokenizer that they were made from."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[name], decoders.ByteLevel()
    if name.startswith("Qwen2"):
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3 + TEXT.split(), trainer)
    tokenizer.model.save(str(path))
    about = {"tokenizer_class": name, "eos_token": "</s>", **about}
    (path / "tokenizer_config.json").write_text(json.dumps(about))
    return tokenizer


@pytest.mark.parametrize("name", SPLITS)
def test_the_tokenizer_that_they_were_made_from(name, tmp_path):
    tokenizer = folder_of(tmp_path, name)
    text = Text.read(tmp_path)
    for line in LINES:
        assert text.encode(line).tolist() == tokenizer.encode(line).ids
        assert text.decode(text.encode(line)) == tokenizer.decode(tokenizer.encode(line).ids)
    assert text.stop == (tokenizer.token_to_id("</s>"),)


def test_a_first_token_where_the_file_asks_for_it(tmp_path):
    """As OPT's files do."""
    tokenizer = folder_of(tmp_path, "GPT2Tokenizer", add_bos_token=True, bos_token="</s>")
    text = Text.read(tmp_path)
    assert text.encode("the king").tolist() == [0, *tokenizer.encode("the king").ids]
    assert text.decode(text.encode("the king")) == "the king"


def test_another_class_is_refused_by_name(tmp_path):
    folder_of(tmp_path, "GPT2Tokenizer", tokenizer_class="CodeGenTokenizer")
    with pytest.raises(ValueError, match="expected tokenizer.json, or vocab.json and merges.txt of GPT2.*got CodeGen"):
        Text.read(tmp_path)


@pytest.mark.peers("transformers")
@pytest.mark.parametrize("name", SPLITS)
def test_as_in_transformers(name, tmp_path):
    import transformers

    folder_of(tmp_path, name)
    theirs, text = getattr(transformers, name).from_pretrained(tmp_path), Text.read(tmp_path)
    for line in LINES:
        assert text.encode(line).tolist() == theirs(line)["input_ids"]
