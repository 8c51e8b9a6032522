"""The benchmark of Spec-Bench's questions at toy size: its lines, other programs beside, answers kept one by one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxspec
from jaxspec.loading import save_model
from tests.support.jaxspec import small

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LINES = [
    {"question_id": 81, "category": "writing", "turns": ["Speak, speak.", "Once more."]},
    {"question_id": 201, "category": "translation", "turns": ["Good morrow, lords."]},
    {"question_id": 202, "category": "translation", "turns": ["The king is come."]},
]
METHODS = "autoregressive", "prompt lookup", "speculative"


def lines(tmp_path, *options):
    about = ["--questions", tmp_path / "questions.jsonl", "--drafts", tmp_path / "drafts", "--target", tmp_path / "t"]
    sizes = ["--per-task", 1, "--new-tokens", 12, "--out", tmp_path / "out", "--json", "--methods", *METHODS]
    command = [sys.executable, BENCHMARKS / "specbench.py", *about, *sizes, *options]
    output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, cwd=BENCHMARKS).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.peers
def test_lines_of_methods_and_of_transformers(tmp_path):
    pair = small.pair()
    jaxspec.save_huggingface(pair.target, tmp_path / "t")
    save_model(pair.draft, tmp_path / "drafts" / "plain" / "draft")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    rows = lines(tmp_path, "--temperatures", 0, 1, "--others")
    found = {(row["temperature"], row["task"], row["method"]): row for row in rows}
    tasks, others = ("conversation", "translation", "all"), ("transformers", "transformers, assisted")
    assert {task for _, task, _ in found} == set(tasks)
    for temperature in (0.0, 1.0):
        for name in METHODS:
            assert all(found[temperature, task, name]["identical"] for task in tasks)
        assert found[temperature, "all", "autoregressive"]["ratio_to_autoregressive"] == 1
        assert found[temperature, "all", "autoregressive"]["tau"] == 1
        assert found[temperature, "all", "autoregressive"]["tokens_compared"] == 36
    assert all(found[0.0, "all", name]["identical"] for name in others)
    assert found[0.0, "all", "speculative"]["tau"] > 1
    kept = (tmp_path / "out" / "answers.jsonl").read_text()
    again = lines(tmp_path, "--temperatures", 0, 1, "--minutes", 0, "--picture", tmp_path / "out" / "speed.png")
    assert (tmp_path / "out" / "speed.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "answers.jsonl").read_text() == kept
    assert again == rows
