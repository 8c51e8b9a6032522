"""Text of published checkpoints: tokenizers as their files define them, stop tokens, chat templates."""

import json
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from jaxspec import Text
from jaxspec.generation.requests import text_of
from jaxspec.text.tokenizer import encode

SENTENCEPIECE = Path(__file__).parents[2] / "data" / "stories260K" / "tok512.model"
MESSAGES = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": 'Say <b>"hé"</b>'},
    {"role": "assistant", "content": "hé"},
    {"role": "user", "content": " again"},
]
PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
#: What published templates use of Jinja, and what transformers adds to it.
TEMPLATES = {
    "plain": PLAIN,
    "generation prompt": PLAIN + "{% if add_generation_prompt %}[assistant]{% endif %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages | tojson(ensure_ascii=true) }}",
    "namespace": (
        "{%- set ns = namespace(last='') -%}\n{%- for m in messages %}\n"
        "    {%- if m.role == 'system' %}\n        {%- continue %}\n    {%- endif %}\n"
        "    {%- set ns.last = m.content %}\n    {{- loop.index0 }}{{ m.content }}\n"
        "    {%- if loop.index0 == 2 %}\n        {%- break %}\n    {%- endif %}\n{%- endfor %}{{ ns.last }}"
    ),
    "blocks on lines": (
        "{% for m in messages %}\n  {% if m.role == 'user' %}\nU {{ m.content }}\n  {% endif %}\n{% endfor %}"
    ),
    "marked answers": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{%- endgeneration -%}\n{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "tools": "{% if tools is none and not documents %}no tools{% endif %}{{ unk_token is defined }}{{ pad_token }}",
    "date": "{{ strftime_now('%Y') }}{% if strftime_now is defined %} is now{% endif %}",
}
REFUSING = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Begin with the user!') }}{% endif %}"


def tokenizer(adds_start):
    """Byte-level pairs; ids 0 to 2 are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|user|>"]
    vocab = {token: index for index, token in enumerate([*special, *alphabet, "he", "hey"])}
    result = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("he", "y")]))
    result.add_special_tokens(special)
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.post_processor = processors.ByteLevel(trim_offsets=False)
    if adds_start:
        result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return result


def folder_with(folder, adds_start=True, **files):
    """A folder with tokenizer.json and these JSON files (or texts)."""
    tokenizer(adds_start).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def about(template=None, **more):
    names = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "pad_token": None}
    return names | ({} if template is None else {"chat_template": template}) | more


@pytest.mark.parametrize("adds_start", [True, False])
def test_text_is_encoded_as_the_file_defines(tmp_path, adds_start):
    text = Text.read(folder_with(tmp_path, adds_start, tokenizer_config__json=about(add_bos_token=not adds_start)))
    ids = text.encode("hey <|user|>hé")
    assert ids.dtype == np.int32
    assert (ids[0] == 0) == adds_start
    assert list(ids).count(2) == 1
    assert text.decode(ids) == "hey hé"


def test_a_folder_without_a_tokenizer_has_no_text(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Text.read(tmp_path) is None


@pytest.mark.parametrize(
    ("generation", "config", "stop"),
    [
        ({"eos_token_id": 1}, {}, (1,)),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 7}, (1, 2)),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, (0,)),
        ({"eos_token_id": None}, {"eos_token_id": 7}, (7,)),
        ({"temperature": 0.6}, {"eos_token_id": [7, 8]}, (7, 8)),
        ({}, {}, ()),
    ],
)
def test_tokens_that_end_a_sequence(tmp_path, generation, config, stop):
    text = Text.read(folder_with(tmp_path, generation_config__json=generation, config__json=config))
    assert text.stop == stop
    assert text.defaults == generation
    assert text.stopping([5]).stop == (5,)


NAMED = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": PLAIN}]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": about(PLAIN)},
        {"tokenizer_config__json": about(NAMED)},
        {"tokenizer_config__json": about(), "chat_template__jinja": PLAIN},
        {"tokenizer_config__json": about("another"), "chat_template__jinja": PLAIN},
        {"tokenizer_config__json": {"chat_template": PLAIN}, "special_tokens_map__json": about()},
    ],
    ids=["string", "list", "file", "file first", "special_tokens_map.json"],
)
def test_a_chat_template_is_read_from_any_of_its_files(tmp_path, files):
    text = Text.read(folder_with(tmp_path, **files))
    ids = text.chat([{"role": "user", "content": "hey "}])
    assert text.tokenizer.decode(ids, skip_special_tokens=False) == "<s>[user]hey</s>\n"
    assert list(ids).count(0) == 1, "the template adds the first token, and it is not added again"


def test_without_a_chat_template(tmp_path):
    with pytest.raises(ValueError, match="expected a model with a chat template"):
        Text.read(folder_with(tmp_path)).chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "messages", "error"),
    [
        (REFUSING, MESSAGES, "Begin with the user!"),
        ("{% for m in messages %}{% if %}", MESSAGES, "got: "),
        ("{{ messages[0].content.role.name }}", MESSAGES, "got: .*role"),
        ("{{ messages[0].content + 1 }}", MESSAGES, 'got: .*"int"'),
        ("{{ messages.__class__.__mro__ }}", MESSAGES, "unsafe"),
        ("{{ messages.append(1) }}", MESSAGES, "'append' .* is unsafe"),
    ],
    ids=["refuses", "syntax", "undefined", "type", "escape", "change"],
)
def test_what_a_template_refuses(tmp_path, template, messages, error):
    text = Text.read(folder_with(tmp_path, chat_template__jinja=template))
    with pytest.raises(ValueError, match=error):
        text.chat(messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_to_something(tmp_path, name):
    text = Text.read(folder_with(tmp_path, tokenizer_config__json=about(TEMPLATES[name])))
    assert len(text.chat(MESSAGES)) > 5


def test_a_template_can_use_the_date(tmp_path):
    text = Text.read(folder_with(tmp_path, tokenizer_config__json=about(TEMPLATES["date"])))
    assert text.decode(text.chat(MESSAGES)) == f"{datetime.now().year} is now"


@pytest.mark.peers("transformers")
@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_rendered_as_transformers_does(tmp_path, name):
    import transformers

    folder = folder_with(tmp_path, tokenizer_config__json=about(TEMPLATES[name], tokenizer_class="TokenizersBackend"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert Text.read(folder).chat(MESSAGES).tolist() == expected


@pytest.mark.peers("transformers")
@pytest.mark.parametrize("adds_start", [True, False])
def test_text_is_encoded_as_transformers_does(tmp_path, adds_start):
    import transformers

    folder = folder_with(tmp_path, adds_start, tokenizer_config__json=about(tokenizer_class="TokenizersBackend"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert Text.read(folder).encode("hey <|user|>hé").tolist() == theirs("hey <|user|>hé")["input_ids"]


def limited(adds_start=True):
    """The tokenizer as training scripts save it."""
    result = tokenizer(adds_start)
    result.enable_truncation(12)
    result.enable_padding(pad_id=2, pad_token="<|user|>", length=40)
    return result


LONG = "hey he y" * 9


def test_saved_truncation_and_padding_do_not_reach_prompts(tmp_path):
    expected = Text.of(tokenizer(True)).encode(LONG).tolist()
    limited().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about("{{ messages[0].content }}")))
    text = Text.read(tmp_path)
    assert text.encode(LONG).tolist() == expected
    assert text.encode("hey").tolist() == expected[:2]
    assert text.chat([{"role": "user", "content": LONG}]).tolist() == expected[1:]


def test_a_tokenizer_that_truncates_and_pads_is_used_without_and_left_as_it_is():
    own, expected = limited(False), tokenizer(False).encode(LONG).ids
    assert Text.of(own).encode(LONG).tolist() == expected
    assert encode(own, LONG).tolist() == expected
    assert Text.of(own).encode("hey").tolist() == encode(own, "hey").tolist() == expected[:1]
    assert (own.truncation["max_length"], own.padding["length"]) == (12, 40)


#: One more than the tokenizer's file holds, and one of its own pieces.
MORE = {
    "261": {"content": "<|im_end|>", "special": True, "normalized": False},
    "262": {"content": "[x]", "special": False, "normalized": False, "lstrip": True},
    "260": {"content": "hey", "special": True, "normalized": False},
    "1": {"content": "</s>", "special": True, "normalized": False},
}
MORE = {number: dict.fromkeys(("lstrip", "rstrip", "single_word"), False) | token for number, token in MORE.items()}
SPECIAL = {
    "added_tokens_decoder": about(added_tokens_decoder=MORE),
    "named": about(eos_token="hey", additional_special_tokens=["he", {"__type": "AddedToken", "content": "<s>"}]),
}


def test_special_tokens_that_only_the_configuration_adds(tmp_path):
    text = Text.read(folder_with(tmp_path, tokenizer_config__json=SPECIAL["added_tokens_decoder"]))
    ids = text.encode("he [x]<|im_end|>hé hey").tolist()
    assert ids[:4] == [0, 259, 262, 261]
    assert ids[-1] == 260
    assert text.decode(ids) == "he[x]hé "
    assert {name: text.special_ids[name] for name in ("<|im_end|>", "hey")} == {"<|im_end|>": 261, "hey": 260}
    assert "[x]" not in text.special_ids


def test_tokens_that_the_configuration_marks_as_special_are_special(tmp_path):
    text = Text.read(folder_with(tmp_path, tokenizer_config__json=SPECIAL["named"]))
    assert text.decode(text.encode("a hey<s>b")) == "a b"
    assert text.stop == (260,), "eos_token, if no file has an id"


@pytest.mark.parametrize("number", ["7", "300"])
@pytest.mark.parametrize("name", ["</s>", "<|im_end|>"])
def test_an_added_token_under_another_id_is_refused(tmp_path, number, name):
    more = {number: {"content": name, "special": True}}
    with pytest.raises(ValueError, match=rf"expected the token .* at id {number}, as in the added tokens, got id"):
        Text.read(folder_with(tmp_path, tokenizer_config__json=about(added_tokens_decoder=more)))


@pytest.mark.peers("transformers")
@pytest.mark.parametrize("name", SPECIAL)
def test_special_tokens_are_those_of_transformers(tmp_path, name):
    import transformers

    about = SPECIAL[name] | {"tokenizer_class": "TokenizersBackend"}
    folder = folder_with(tmp_path, tokenizer_config__json=about)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Text.read(folder)
    for text in ("he [x]<|im_end|>hé hey", "hey hey<s>", "he he</s>"):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("saved", [False, True])
def test_stop_tokens_and_chat_template_without_a_tokenizer(tmp_path, saved):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about(PLAIN)))
    text = Text.read(tmp_path)
    if saved:
        (tmp_path / "copy").mkdir()
        text.write(tmp_path / "copy")
        text = Text.read(tmp_path / "copy")
    assert (text.stop, text.template, text.encode, text.decode) == ((1, 2), PLAIN, None, None)
    with pytest.raises(ValueError, match="expected a model with a tokenizer, got none; pass tokenizer="):
        text.chat(MESSAGES)


def test_a_targets_own_settings_stay_under_another_tokenizer(tmp_path):
    target = Text.read(folder_with(tmp_path, tokenizer_config__json=about(PLAIN))).stopping([2])
    method = SimpleNamespace(text=target)
    for passed in (tokenizer(True), Text.of(tokenizer(True))):
        text = text_of(method, passed)
        assert (text.stop, text.template, text.special) == ((2,), PLAIN, target.special)
        assert text.chat(MESSAGES).tolist() == target.chat(MESSAGES).tolist()
    own = text_of(method, Text.of(tokenizer(True), stop=(1,), template="!"))
    assert (own.stop, own.template) == ((1,), "!")


def test_a_chat_template_is_written_with_its_tokenizer(tmp_path):
    text = Text.of(tokenizer(True), template=PLAIN, special={"bos_token": "<s>", "eos_token": "</s>"})
    text.write(tmp_path)
    assert Text.read(tmp_path).chat(MESSAGES).tolist() == text.chat(MESSAGES).tolist()


def test_files_are_carried_along(tmp_path):
    files = {"tokenizer_config__json": about(PLAIN), "generation_config__json": {"eos_token_id": [1]}}
    text = Text.read(folder_with(tmp_path, **files, chat_template__jinja=PLAIN, config__json={"model_type": "x"}))
    (tmp_path / "copy").mkdir()
    text.write(tmp_path / "copy")
    assert not (tmp_path / "copy" / "config.json").exists()
    copied = Text.read(tmp_path / "copy")
    assert (copied.stop, copied.template, copied.special) == (text.stop, text.template, text.special)
    text.write(tmp_path)
    assert Text.read(tmp_path).encode("hey").tolist() == text.encode("hey").tolist()


def test_a_tokenizer_alone_is_written(tmp_path):
    text = Text.of(tokenizer(adds_start=True), stop=(1,))
    text.write(tmp_path)
    assert Text.read(tmp_path).encode("hey").tolist() == text.encode("hey").tolist()


@pytest.fixture
def pieces(tmp_path):
    """A folder whose only tokenizer is a SentencePiece model."""
    (tmp_path / "tokenizer.model").write_bytes(SENTENCEPIECE.read_bytes())
    return tmp_path


def test_a_sentencepiece_model(pieces):
    text = Text.read(pieces)
    ids = text.encode("Once upon a time")
    assert ids.tolist()[0] == 1
    assert text.decode(ids) == "Once upon a time"
    assert text.stop == (2,)
    (pieces / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert Text.read(pieces).stop == (1, 2)


def test_control_pieces_in_a_chat_are_tokens(pieces):
    (pieces / "tokenizer_config.json").write_text(json.dumps(about(PLAIN)))
    text = Text.read(pieces)
    ids = text.chat([{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "yes"}]).tolist()
    assert ids[0] == 1
    assert (ids.count(1), ids.count(2)) == (1, 2)
    assert "</s>" not in text.decode(ids)
    assert text.encode("[user]a dog").tolist() == ids[: ids.index(2)]


@pytest.mark.parametrize("module", ["sentencepiece", "jinja2"])
def test_a_missing_library_is_named_with_its_extra(pieces, monkeypatch, module):
    (pieces / "tokenizer_config.json").write_text(json.dumps(about(PLAIN)))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{module}.*jaxfed-jaxspec\[huggingface\]"):
        Text.read(pieces).chat(MESSAGES)
