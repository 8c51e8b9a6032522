"""``jaxspec train draft``: a draft for a target, on text that the target continues itself."""

import json

import chex
import pytest

import jaxspec
from jaxfed import checkpoint
from jaxspec import zoo
from jaxspec.__main__ import main
from jaxspec.drafts import limited, num_streams
from jaxspec.loading import load_draft, load_model
from tests.support.jaxspec import small

FEW = ["--no-tune", "--count", "8", "--new-tokens", "10", "--schedule.steps", "6", "--schedule.batch-size", "2"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files to take prompts from."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(2):
        (folder / f"{number}.txt").write_text("My lord, what would you have me say of that? " * 8)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    jaxspec.save_huggingface(small.pair().target, folder)
    return folder


def trained(capsys, texts, out, *options):
    main(["train", "draft", "--texts", str(texts), "--out", str(out), *FEW, *map(str, options), "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("eagle3", ["--taps", 0, 1, 2, "--vocabulary", 20]), ("medusa", ["--heads", 2]), ("hydra++", ["--taps", 1])],
)
def test_a_draft_that_reads_hidden_states(kind, options, texts, target, tmp_path, capsys):
    result = trained(capsys, texts, tmp_path, "--kind", kind, "--target", target, *options)
    assert result["kind"] == kind
    assert 0 <= result["accepted"] <= result["window"]
    model = jaxspec.load_huggingface(target)
    draft = load_draft(result["draft"], model, taps=(0, 1, 2) if kind == "eagle3" else None, report=lambda line: None)
    plain, drafted = (
        jaxspec.generate(method, ["My lord, "], 8).tokens
        for method in (jaxspec.autoregressive(model), jaxspec.speculative(model, draft, window=2))
    )
    assert drafted == plain
    again = trained(capsys, texts, tmp_path, "--kind", kind, "--target", target, *options)
    assert again == result


def test_a_table_of_n_grams_ends_with_what_tune_finds(texts, target, tmp_path, capsys):
    """The held-out prompt is repeated, so that the table has its answer."""
    result = trained(capsys, texts, tmp_path, "--kind", "ngram", "--target", target, "--new-tokens", 24, "--tune")
    assert set(result) == {"kind", "accepted", "window", "draft", "tuned", "over_plain"}
    assert "by the cost model" in result["tuned"]
    model, tuned = jaxspec.load_huggingface(target), json.loads((tmp_path / "draft" / "tuned.json").read_text())
    assert tuned["predicted"] == pytest.approx(result["over_plain"], abs=1e-3)
    method = jaxspec.speculative(model, load_draft(result["draft"], model), window=3)
    plain = jaxspec.autoregressive(model)
    assert len({str(jaxspec.generate(each, ["My lord, "], 8).tokens) for each in (plain, method)}) == 1


@pytest.mark.parametrize("kind", ["plain", "streams"])
def test_a_language_model_as_a_draft(kind, texts, tmp_path, capsys, small_pair):
    result = trained(capsys, texts, tmp_path, "--kind", kind, "--target", small_pair)
    draft = load_model(result["draft"])
    own = limited(draft, 0) if kind == "streams" else draft
    before = zoo.load(str(small_pair)).draft.params
    assert num_streams(draft.network) == (2 if kind == "streams" else 0)
    if kind == "streams":
        chex.assert_trees_all_equal(before, own.params)
    assert checkpoint.latest(tmp_path / "steps") == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--count 1", "expected count >= 2, got 1"),
        ("--new-tokens 7", "expected new_tokens >= 8, got 7"),
        ("--heads 0", "expected heads >= 1, got 0"),
        ("--texts NOTHING", "NOTHING: expected a file or folder to read"),
        ("--kind streams", "expected --draft for jaxspec train draft --kind streams"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(options, message, target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"jaxspec: .*{message}"):
        main(["train", "draft", "--target", str(target), *options.split()])
