"""``jaxspec train lens``, and trained exits as other commands find them."""

import json

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.__main__ import main
from jaxspec.cli import _train_lens
from jaxspec.loading import Exit, save_exits
from jaxspec.verify import init_frequent_lens
from tests.support.jaxspec import small

FEW = ["--count", "8", "--new-tokens", "10", "--vocabulary", "20", "--rank", "4", "--minutes", "0.02"]
PROMPT = ["--prompt", "My lord, ", "--max-new-tokens", "12", "--json"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target and a draft as published folders, without an exit."""
    folder, pair = tmp_path_factory.mktemp("models"), small.pair()
    for name, model in (("target", pair.target), ("draft", pair.draft)):
        jaxspec.save_huggingface(model, folder / name)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("My lord, what would you have me say of that? " * 8)
    return path


def command(capsys, *options):
    main([str(option) for option in options])
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


def exit_of(folder, layer=1):
    target = jaxspec.load_huggingface(folder / "target")
    ids = np.arange(20, dtype=np.int32)
    return Exit(layer, init_frequent_lens(target, ids, 4, jax.random.key(0)))


def test_an_exit_is_trained_saved_and_used(folders, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_train_lens, "BATCH", 4)
    options = ["train", "lens", "--target", folders / "target", "--texts", texts, "--layers", 1, *FEW]
    result, _ = command(capsys, *options, "--out", tmp_path, "--json")
    assert set(result["contained"]["1"]) == {"1", "4", "8"}
    assert 2 <= result["answers"] <= 8
    again, _ = command(capsys, *options, "--out", tmp_path, "--json")
    assert again == result
    exit = jaxspec.load_exit(tmp_path, jaxspec.load_huggingface(folders / "target"))
    assert exit.layer == 1
    assert len(exit.head.tokens) == 20
    models = ["--target", folders / "target", "--draft", folders / "draft"]
    plain, _ = command(capsys, "generate", *models, "--method", "autoregressive", *PROMPT)
    mirror, notice = command(capsys, "generate", *models, "--method", "mirror", "--exit", tmp_path, *PROMPT)
    assert mirror["tokens"] == plain["tokens"]
    assert not notice


def test_mirror_without_a_trained_exit_says_so(folders, capsys):
    models = ["--target", folders / "target", "--draft", folders / "draft"]
    plain, quiet = command(capsys, "generate", *models, "--method", "speculative", *PROMPT)
    mirror, notice = command(capsys, "generate", *models, "--method", "mirror", *PROMPT)
    assert mirror["tokens"] == plain["tokens"]
    assert "no trained exit at layer 1 of 2: the logit lens is used" in notice
    assert "jaxspec train lens" in notice
    assert not quiet
    assert not command(capsys, "generate", *models, "--method", "mirror", "--policy", "saguaro", *PROMPT)[1]


def test_an_exit_beside_the_target_is_found(folders, tmp_path, capsys):
    pair, model = small.pair(), tmp_path / "target"
    jaxspec.save_huggingface(pair.target, model)
    save_exits([exit_of(folders)], model)
    models = ["--target", model, "--draft", folders / "draft"]
    _, notice = command(capsys, "generate", *models, "--method", "mirror", *PROMPT)
    assert not notice
    _, notice = command(capsys, "generate", *models, "--method", "mirror", "--exit-layer", 2, *PROMPT)
    assert "no trained exit at layer 2 of 2 (there are exits at 1)" in notice


@pytest.mark.parametrize(
    "options", ["generate --prompt a --method mirror", "doctor", "probe", "tune", "bench questions.jsonl"]
)
def test_a_missing_exit_is_refused_before_anything_is_loaded(options, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").write_text("")
    name, *rest = options.split()
    target = [str(folders / "target")] if name == "tune" else ["--target", str(folders / "target")]
    with pytest.raises(SystemExit, match="NOTHING: expected lens.safetensors or its folder"):
        main([name, *rest, *target, "--exit", "NOTHING"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--layers 0", "expected layers >= 1, got"),
        ("--layers 2", "expected different layers from 1 to 1, got 2"),
        ("--rank 0", "expected rank >= 1, got 0"),
        ("--minutes 0", "expected minutes > 0, got 0"),
        ("--count 1", "expected count >= 2, got 1"),
        ("--texts NOTHING", "NOTHING: expected a file or folder to read"),
    ],
)
def test_arguments_are_checked_before_the_target_answers(options, message, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"jaxspec: .*{message}"):
        main(["train", "lens", "--target", str(folders / "target"), *options.split()])
