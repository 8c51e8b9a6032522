"""``jaxspec train target``: the trained target is written, decodes, and its price is told."""

import json

import pytest

import jaxspec
from jaxspec.__main__ import main
from jaxspec.loading import load_model
from tests.support.jaxspec import small


def test_a_target_is_trained_and_written(tmp_path, capsys):
    jaxspec.save_huggingface(small.pair().target, tmp_path / "model")
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("My lord, what would you have me say of that? " * 8)
    answers = ["--texts", text, "--count", "8", "--new-tokens", "10", "--exit-loss", "0.5", "--layers", "1"]
    steps = ["--schedule.steps", "3", "--schedule.batch-size", "2"]
    command = ["train", "target", "--target", tmp_path / "model", *answers, *steps, "--out", out, "--json"]
    main([str(option) for option in command])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for when in ("before", "after"):
        assert set(figures[when]["perplexity"]) == {"prompts", "answers"}
        assert set(figures[when]["contained"]["1"]) == {"1", "4", "8"}
    assert figures["before"] != figures["after"]
    trained = load_model(out / "target")
    assert jaxspec.generate(jaxspec.autoregressive(trained), ["My lord, "], 4).tokens


def test_a_weight_that_is_not_positive():
    with pytest.raises(SystemExit, match="expected exit_loss > 0, got 0"):
        main(["train", "target", "--exit-loss", "0"])
