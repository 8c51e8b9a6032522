"""Spec-Bench's file is read as published, and methods are compared on equal terms."""

import json
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec import DecoderConfig, Text
from jaxspec import __main__ as command_line
from jaxspec.analysis.specbench import TASKS, Question, fastest, read_questions, run
from jaxspec.cli._bench import baselines
from jaxspec.loading.store import save_model
from tests.support.jaxspec import models, small

LINES = [
    {"question_id": 81, "category": "writing", "turns": ["Speak, speak.", "Once more."]},
    {"question_id": 101, "category": "reasoning", "turns": ["What news?", "And then?"]},
    {"question_id": 201, "category": "translation", "turns": ["Good morrow, lords."], "reference": ["x"]},
    {"question_id": 241, "category": "summarization", "turns": ["The king is come."]},
    {"question_id": 321, "category": "qa", "turns": ["Who goes there?"]},
    {"question_id": 401, "category": "math_reasoning", "turns": ["Three and four?"]},
    {"question_id": 561, "category": "rag", "turns": ["Where is thy father?"]},
]


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "question.jsonl", LINES)


def test_questions_are_read_task_by_task(questions):
    read = read_questions(questions)
    assert [question.id for question in read] == [line["question_id"] for line in LINES]
    assert len({question.task for question in read}) == len(set(TASKS.values())) == 6
    assert read[0].turns == ["Speak, speak.", "Once more."]
    assert [question.id for question in read_questions(questions, per_task=1)] == [81, 201, 241, 321, 401, 561]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected question_id"),
        ({"question_id": 1, "category": "poetry", "turns": []}, "line 2: .*got 'poetry'"),
        ({"question_id": 1, "category": "qa"}, "line 2: .*got 'turns'"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_questions(write(tmp_path / "q.jsonl", [LINES[0], line]))


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    """Not at what JSON allows inside a string; with a byte order mark and Windows' line ends."""
    torn = LINES[1] | {"turns": ["One\u2028two\u2029three\u0085four"]}
    lines = [json.dumps(line, ensure_ascii=False) for line in (torn, LINES[0], torn)]
    for end in ("\n", "\r\n"):
        (tmp_path / "q.jsonl").write_bytes("".join(line + end for line in lines).encode("utf-8-sig"))
        assert [question.turns for question in read_questions(tmp_path / "q.jsonl")][::2] == [torn["turns"]] * 2
    (tmp_path / "q.jsonl").write_bytes("\n".join([*lines, "{"]).encode() + b"\xff")
    with pytest.raises(ValueError, match="line 4: expected question_id"):
        read_questions(tmp_path / "q.jsonl")


def test_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match="expected a question on every line, got none"):
        read_questions(write(tmp_path / "q.jsonl", [""]))


def test_no_runs():
    with pytest.raises(ValueError, match="expected at least one method and one run, got 1 and 0"):
        run({"mirror": models.mirror()}, [], runs=0)
    with pytest.raises(ValueError, match="expected at least one question, got none"):
        run({"mirror": models.mirror()}, [])


@pytest.mark.slow
def test_heads_that_two_devices_cannot_share(tmp_path, capsys):
    """Three key-value heads, as SmolLM2 has: plain decoding runs on one device, the policies on one each."""
    text = small.pair().target.text
    config = DecoderConfig(small.pair().target.network.config.vocab_size, 36, 2, 9, 3, 4, 32)
    for name, layers in (("target", 2), ("draft", 1)):
        model = jaxspec.decoder(replace(config, num_layers=layers), jax.random.key(0))
        save_model(model._replace(text=text), tmp_path / name)
    file = write(tmp_path / "q.jsonl", LINES[2:3])
    where = ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft")]
    command_line.main(["bench", str(file), *where, "--max-new-tokens", "8", "--runs", "1", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in rows[:3]] == ["autoregressive", "speculative", "mirror"]
    assert all(row["identical"] and row["baseline_devices"] == 1 for row in rows)


def test_the_baseline_is_the_fastest_of_its_settings():
    text = Text(lambda text: np.asarray([1, 2, 3]), lambda ids: "")
    fast = jaxspec.autoregressive(models.target())._replace(text=text)

    def late(state, *watch):
        time.sleep(0.02)
        return fast.step(state, *watch)

    both, question = {2: fast._replace(step=late), 1: fast}, Question(1, "qa", ["ab"])
    assert fastest(both, [question], 4, runs=1) == 1
    assert fastest({2: both[2]}, [question], 4, runs=1) == 2
    assert sorted(baselines(models.target(), 2)) == [1, 2]


@pytest.mark.slow
def test_methods_are_compared_on_the_same_prompts(small_pair, questions, capsys):
    options = ["--target", str(small_pair), "--per-task", "1", "--max-new-tokens", "24", "--runs", "2"]
    command_line.main(["bench", str(questions), *options, "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tasks = [*dict.fromkeys(TASKS.values()), "all"]
    assert [(row["task"], row["method"]) for row in rows] == [
        (task, method) for task in tasks for method in ("autoregressive", "speculative", "mirror")
    ]
    assert all(row["identical"] for row in rows)
    assert [row["tokens"] for row in rows[::3]] == [48, 24, 24, 24, 24, 24, 168]
    for row in rows:
        base = next(other for other in rows if other["task"] == row["task"])
        assert row["ratio"] == pytest.approx(row["tokens_per_second"] / base["tokens_per_second"])
        assert (row["accepted_length"] > 0) == (row["method"] != "autoregressive")
