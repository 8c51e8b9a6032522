"""``python -m jaxspec generate`` and ``convert``: what they print and write, and how they refuse."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxspec
from jaxspec import zoo
from jaxspec.__main__ import main
from tests.jaxspec import small

PROMPT = "My lord, "


def run(capsys, *args):
    """The last line of a command's output, as JSON."""
    main([*map(str, args), "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A pair as two published checkpoints."""
    folder, pair = tmp_path_factory.mktemp("published"), small.pair()
    for name in ("target", "draft"):
        jaxspec.save_huggingface(getattr(pair, name), folder / name)
    return folder


@pytest.fixture(scope="module")
def expected():
    return jaxspec.generate(jaxspec.autoregressive(small.pair().target), [PROMPT], 12)


@pytest.mark.parametrize("method", ["autoregressive", "speculative", "mirror"])
def test_every_method_writes_the_target_s_text(method, published, expected, capsys):
    where = "--target", published / "target", "--draft", published / "draft"
    found = run(capsys, "generate", *where, "--method", method, "--prompt", PROMPT, "--max-new-tokens", 12)
    assert found["tokens"] == expected.tokens[0]
    assert found["text"] == expected.text[0]
    assert found["finish_reason"] == "length"
    assert found["stats"]["new_tokens"] == 12


def test_a_pair_needs_no_draft(capsys):
    """The embedded one needs no name either."""
    expected = jaxspec.generate(jaxspec.autoregressive(zoo.load().target), [PROMPT], 12)
    found = run(capsys, "generate", "--prompt", PROMPT, "--max-new-tokens", 12)
    assert found["tokens"] == expected.tokens[0]
    assert found["stats"]["accepted"] > 0


def test_people_see_the_prompt_and_what_follows(small_pair, expected, capsys):
    where = ["--target", str(small_pair)]
    main(["generate", *where, "--prompt", PROMPT, "--max-new-tokens", "12", "--method", "autoregressive"])
    assert capsys.readouterr().out.startswith(PROMPT + expected.text[0])


def test_options_reach_the_sampler(small_pair, capsys):
    pair = small.pair()
    options = {"temperature": 0.9, "top_p": 0.8, "top_k": 9, "seed": 5}
    expected = jaxspec.generate(jaxspec.autoregressive(pair.target), [PROMPT], 30, **options, stop=["a"])
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    where = "--target", small_pair, "--prompt", PROMPT
    found = run(capsys, "generate", *where, "--max-new-tokens", 30, *flags, "--stop", "a")
    assert found["tokens"] == expected.tokens[0]
    assert found["finish_reason"] == expected.finish_reason[0] == "stop"
    assert "a" not in found["text"]


def test_convert_there_and_back_changes_no_number(published, tmp_path, expected, capsys):
    assert run(capsys, "convert", published / "target", tmp_path / "ours")["wrote"] == "checkpoint"
    assert run(capsys, "convert", tmp_path / "ours", tmp_path / "back")["wrote"] == "huggingface"
    before, after = (load_file(folder / "model.safetensors") for folder in (published / "target", tmp_path / "back"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    found = run(
        capsys, "generate", "--target", tmp_path / "ours", "--method", "autoregressive", "--prompt", PROMPT,
        "--max-new-tokens", 12,
    )  # fmt: skip
    assert found["tokens"] == expected.tokens[0]


def test_a_converted_model_loads_onto_a_mesh(published, tmp_path, expected):
    from jaxspec.models.store import convert, load_model

    convert(published / "target", tmp_path / "ours")
    for size in (2, 4):
        mesh = jaxspec.mesh_of(jax.devices()[:size])
        method = jaxspec.autoregressive(load_model(tmp_path / "ours", mesh), mesh)
        assert jaxspec.generate(method, [PROMPT], 12).tokens == expected.tokens


def test_eight_bits_go_through_a_checkpoint(tmp_path):
    from jaxspec.models.store import load_model, save_model

    pair = zoo.load()
    small = pair.draft._replace(params=jaxspec.quantized(pair.draft.params))
    save_model(small, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path).params, small.params)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("generate", "--prompt", "x", "--target", "nowhere"), "nowhere: expected a folder with config.json"),
        (("generate", "--prompt", "x", "--temperature", "-1"), "expected temperature >= 0"),
        (("generate", "--prompt", ""), "prompt 0: expected at least one token"),
        (("generate", "--prompt", "x", "--window", "0"), "expected window >= 1"),
        (("generate", "--prompt", "x", "--chat"), "expected a model with a chat template"),
        (("convert", "nowhere", "out"), "nowhere: expected a folder with config.json"),
    ],
)
def test_bad_input_is_one_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"jaxspec: .*{words}"):
        main(args)


def test_a_target_without_a_draft_cannot_speculate(published):
    with pytest.raises(SystemExit, match="expected --draft for --method mirror"):
        main(["generate", "--target", str(published / "target"), "--method", "mirror", "--prompt", "x"])


def test_convert_overwrites_nothing(published, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="expected a new or empty folder"):
        main(["convert", str(published / "target"), str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
