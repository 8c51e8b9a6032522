"""From files to prompts: whole ones through the chat template, windows of texts, files in turns, some left out."""

import gzip
import json
import lzma

import numpy as np
import pytest

from jaxspec.cli.answers import Answers, divided
from jaxspec.cli.shared import PROMPT, prompts_of
from jaxspec.text import Continued, Text
from jaxspec.text.prompt_files import is_prompt_file, read_prompts, said

TEXT = Text(lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32), str)
CHAT = Text(TEXT.encode, str, template="{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}")


def ids(text):
    return list(text.encode())


def lines(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_whole_prompts_go_through_the_template(suffix, tmp_path):
    path = lines(tmp_path / f"a.jsonl{suffix}", {"question": "one"}, {"turns": ["two", "more"]}, {"prompt": "three"})
    assert is_prompt_file(path)
    assert prompts_of(CHAT, 9, [path]) == [ids(f"[user:{word}]") for word in ("one", "two", "three")]
    assert prompts_of(TEXT, 9, [path]) == [ids(word) for word in ("one", "two", "three")]
    assert prompts_of(TEXT, 2, [path]) == [ids("one"), ids("three")]  # evenly spaced


def test_files_take_turns_and_some_prompts_are_left_out(tmp_path):
    first = lines(tmp_path / "a.jsonl", *({"prompt": f"a{number}"} for number in range(3)))
    second = lines(tmp_path / "b.jsonl", {"messages": [{"role": "user", "content": "b0"}]}, {"messages": []})
    with pytest.raises(ValueError, match="at least one token|expected"):
        prompts_of(TEXT, 4, [second])
    second = lines(tmp_path / "b.jsonl", {"prompt": "b0"})
    bench = lines(tmp_path / "bench.jsonl", {"question_id": 1, "turns": [" a1 "], "category": "qa"})
    assert prompts_of(TEXT, 4, [first, second], [bench]) == [ids(word) for word in ("a0", "b0", "a2")]
    with pytest.raises(ValueError, match="expected prompts that are not left out, got none"):
        prompts_of(TEXT, 4, [second], [lines(tmp_path / "all.jsonl", {"prompt": "b0"})])


def test_texts_are_cut_into_windows(tmp_path):
    users = lines(tmp_path / "users.jsonl", {"user": "x", "text": "abcdefgh" * 20})
    assert not is_prompt_file(users)
    rows = prompts_of(TEXT, 3, [users])
    assert [len(row) for row in rows] == [PROMPT] * 3
    assert all(bytes(row).decode() in "abcdefgh" * 20 for row in rows)


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"text"), ("a.jsonl", b"no json"), ("a.jsonl", b"[1]\n")])
def test_what_is_no_file_of_prompts(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert not is_prompt_file(tmp_path / name)
    assert not is_prompt_file(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b no")
    with pytest.raises(ValueError, match=r"a.jsonl.gz: expected text in UTF-8"):
        read_prompts(tmp_path / "a.jsonl.gz")


def test_what_a_user_says_first():
    assert said(" why? ") == "why?"
    assert said([{"role": "system", "content": "be"}, {"role": "user", "content": "why?\n"}]) == "why?"


def test_answers_are_divided():
    texts = Continued(np.zeros((20, 5), np.int32), 2)
    train, held_out = divided(texts)
    assert (len(train.tokens), len(held_out.tokens)) == (18, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 1}, "expected count >= 2"),
        ({"minutes": 0.0}, "expected minutes > 0"),
        ({"new_tokens": 3}, "new_tokens >= 8"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Answers(**settings).check(7)
