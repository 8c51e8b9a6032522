"""``jaxspec generate``: where prompts come from, what is shown while it is written, and published settings."""

import io
import json
import os
import subprocess
import sys

import pytest

import jaxspec
from jaxspec.__main__ import main
from jaxspec.cli._generate import SamplingFlags
from tests.support.jaxspec import small

PROMPTS = ["My lord, ", "The king"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A published checkpoint with a chat template, made for texts of 64 tokens."""
    folder = tmp_path_factory.mktemp("target")
    jaxspec.save_huggingface(small.pair().target, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"max_position_embeddings": 64}))
    return folder


def generate(target, *more):
    main(["generate", "--target", str(target), "--max-new-tokens", "12", *map(str, more)])


def expected(prompts):
    return jaxspec.generate(jaxspec.autoregressive(small.pair().target), prompts, 12).text


def test_text_is_shown_and_statistics_are_kept_apart(target, capsys):
    generate(target, "--prompt", PROMPTS[0])
    shown = capsys.readouterr()
    assert shown.out == PROMPTS[0] + expected(PROMPTS[:1])[0] + "\n"
    assert "12 tokens in" in shown.err
    assert "ended by length" in shown.err


def test_pieces_of_stream_and_the_result_that_it_returns():
    method = jaxspec.autoregressive(small.pair().target)
    pieces, whole = jaxspec.stream(method, PROMPTS[0], 12), jaxspec.generate(method, PROMPTS[:1], 12)
    results = []

    def collected():
        results.append((yield from pieces))

    parts = list(collected())
    assert len(parts) > 1
    assert "".join(parts) == whole.text[0]
    assert results[0].tokens == whole.tokens
    assert results[0].stats.new_tokens == 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", [{"prompt": PROMPTS[0]}, {"text": PROMPTS[1], "user": "a"}]),
        ("questions.jsonl", [{"turns": [PROMPTS[0], "then?"], "question_id": 1}, {"question": PROMPTS[1]}]),
        ("one.txt", PROMPTS[0]),
    ],
)
def test_prompts_of_a_file(name, content, target, tmp_path, capsys):
    text = content if isinstance(content, str) else "\n\n".join(map(json.dumps, content))
    (tmp_path / name).write_text(text)
    generate(target, "--prompts", tmp_path / name, "--json")
    found = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert found == expected(PROMPTS[: len(found)])
    assert len(found) == (1 if isinstance(content, str) else 2)


def test_conversations_of_a_file_and_texts_under_the_template(target, tmp_path, capsys):
    messages = [{"role": "user", "content": "My"}, {"role": "assistant", "content": "lord"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    generate(target, "--prompts", tmp_path / "chat.jsonl")
    assert capsys.readouterr().out == expected(["My\nlord\n"])[0] + "\n"
    generate(target, "--prompt", "My lord", "--chat")
    assert capsys.readouterr().out == expected(["My lord\n"])[0] + "\n"


def test_a_prompt_from_standard_input(target, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPTS[1]))
    generate(target)
    assert capsys.readouterr().out == PROMPTS[1] + expected(PROMPTS[1:])[0] + "\n"


def test_a_conversation_on_a_terminal(target, monkeypatch, capsys):
    """Every answer is part of the next prompt; an empty line asks nothing."""
    typed = iter(["My lord", "", "The king", "/exit"])
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    generate(target, "--chat")
    first = expected(["My lord\n"])[0]
    assert capsys.readouterr().out == first + "\n" + expected([f"My lord\n{first}\nThe king\n"])[0] + "\n"


def test_more_tokens_than_the_model_was_made_for(target):
    """64 here, by its config.json; a larger number can be asked for."""
    with pytest.raises(SystemExit, match=r"jaxspec: .*64"):
        generate(target, "--prompt", "a" * 60)
    generate(target, "--prompt", "a" * 60, "--max-length", 128)


def test_published_sampling_unless_flags_say_otherwise():
    published = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}
    assert SamplingFlags().sampling(published) == jaxspec.Sampling(0.6, top_p=0.9)
    assert SamplingFlags(temperature=0.0, seed=3).sampling(published) == jaxspec.Sampling(0.0, top_p=0.9, seed=3)
    assert SamplingFlags().sampling({"do_sample": True}) == jaxspec.Sampling(1.0)
    assert SamplingFlags(top_k=4).sampling({"temperature": 0.6}) == jaxspec.Sampling(top_k=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a prompt, got an empty file"),
        ('{"prompt": "a"}\n{"answer": 1}', "line 2: expected an object with prompt, text, question, messages, turns"),
        ('{"prompt": ""}', "line 1: expected an object with"),
        ("{", "line 1: expected JSON"),
        ("[1]", "line 1: expected an object with"),
    ],
)
def test_files_that_hold_no_prompts(content, message, target, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=rf"jaxspec: .*a\.jsonl.*{message}"):
        generate(target, "--prompts", tmp_path / "a.jsonl")
    with pytest.raises(SystemExit, match="expected --prompt or --prompts, got both"):
        generate(target, "--prompts", tmp_path / "a.jsonl", "--prompt", "a")


@pytest.mark.slow
def test_the_next_process_compiles_nothing_again(target, tmp_path):
    command = [sys.executable, "-m", "jaxspec", "generate", "--target", target, "--prompt", "My lord", "--json"]
    command += ["--max-new-tokens", "12"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    written = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written.append(
            {path.name for path in (tmp_path / "jaxspec/programs").iterdir() if path.name.endswith("-cache")}
        )
    assert written[0] == written[1]
    assert written[0]
