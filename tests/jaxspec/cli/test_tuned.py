"""``tuned.json``: what tune saves, and how generate reads it."""

import json

import pytest

import jaxspec
from jaxspec.__main__ import main
from jaxspec.analysis import Grid, Prediction, Tuned
from jaxspec.analysis._grid import PLAIN
from jaxspec.analysis.timing import Primitives
from jaxspec.cli._methods import Drafting, Loaded
from jaxspec.cli._tuned import TUNED, TunedDefaults, folder_to_save, read_tuned, settings_of, write_tuned
from jaxspec.loading.store import open_model
from jaxspec.methods import DecodeSpec, candidates
from tests.support.jaxspec import models, small

PROMPT = "My lord, "
MIRROR = DecodeSpec(2, candidates.hybrid(3, 3, num_candidates=4), 5, 1, label="hybrid(3, 3)")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A pair as two published checkpoints, and the target as generate loads it."""
    folder, pair = tmp_path_factory.mktemp("published"), small.pair()
    for name in ("target", "draft"):
        jaxspec.save_huggingface(getattr(pair, name), folder / name)
    return folder, open_model(str(folder / "target"))


def tuned(spec, gain=1.25):
    """A result in which this setting is the fastest."""
    rows = [Prediction(spec, 1.0, 1.0, 0.0, gain), Prediction(PLAIN, 1.0, 0.0, 0.0, 1.0)]
    return Tuned(rows, Primitives(1.0), lambda spec: None)


def written(capsys, folder, *flags):
    """The JSON line that generate prints, and its standard error."""
    where = "--target", folder / "target", "--draft", folder / "draft", "--prompt", PROMPT, "--max-new-tokens", 12
    main([*map(str, ("generate", *where, *flags)), "--json"])
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


GRID = Grid((3,), (4, 6), (2, None))


@pytest.mark.parametrize("spec", [*GRID.lookups((3,)), *GRID.specs((1, 2))], ids=str)
def test_every_setting_of_the_grid_is_one_of_flags(spec):
    flags = Drafting(**settings_of(spec))
    again = flags.spec(spec.method, Loaded(models.target(), models.draft()))
    assert (again.method, again.window, again.sizes) == (spec.method, spec.window, spec.sizes)
    if spec.policy is not None and spec.policy.exit is not None:
        assert (again.num_candidates, again.exit_layer) == (spec.num_candidates, spec.exit_layer)
    if spec.policy is not None:
        if spec.policy.uses_own:
            assert again.policy.num_candidates == spec.policy.num_candidates
            assert again.policy.merge == spec.policy.merge
        for name in ("ahead", "exit"):
            one, other = getattr(again.policy, name), getattr(spec.policy, name)
            assert one == other or (other.budget is None and one.budget == 4 * spec.num_candidates)


def test_flags_win():
    found = TunedDefaults(None, "mirror", settings_of(MIRROR), 1.25)
    assert found.settings == {
        "window": 2, "policy": "hybrid", "budget": 3, "draft_candidates": 4, "num_candidates": 5, "exit_layer": 1
    }  # fmt: skip
    assert vars(found.completed(Drafting(window=4))) == vars(Drafting(**found.settings | {"window": 4}))
    other = found.completed(Drafting(policy="saguaro"))
    assert (other.policy, other.budget, other.draft_candidates, other.window) == ("saguaro", None, None, 2)


def test_generate_decodes_as_tuned(published, capsys):
    folder, target = published
    expected = jaxspec.generate(jaxspec.autoregressive(small.pair().target), [PROMPT], 12).tokens[0]
    write_tuned(folder_to_save(str(folder / "target"), folder / "draft"), tuned(DecodeSpec(2)), target)
    path = folder / "draft" / TUNED
    result, said = written(capsys, folder)
    assert f"{path}: speculative, window 2, 1.25× plain decoding by the cost model" in said
    assert result["tokens"] == expected
    assert result["stats"]["verified"] <= 2 * result["stats"]["steps"]
    _, said = written(capsys, folder, "--method", "autoregressive")
    assert TUNED not in said
    write_tuned(folder / "draft", tuned(PLAIN, 1.0), target)
    result, said = written(capsys, folder)
    assert f"{path}: autoregressive, 1.00× plain decoding" in said
    assert result["stats"]["accepted"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"machine": {"devices": ["TPU v9"], "count": 8, "cores": 96}},
            "is for another machine (8 × TPU v9, 96 cores;",
        ),
        ({"target": "0123"}, "is for another target, or another dtype, and ignored"),
        ({"batch": 4}, "is for batches of 4, and ignored"),
    ],
)
def test_what_was_tuned_for_something_else_is_ignored(change, words, published):
    folder, target = published
    write_tuned(folder / "draft", tuned(DecodeSpec(2)), target)
    path = folder / "draft" / TUNED
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found, line = read_tuned(str(folder / "target"), folder / "draft", target)
    assert found is None
    assert words in line


def test_without_a_draft_it_lies_beside_the_target(published):
    folder, target = published
    write_tuned(folder_to_save(str(folder / "target"), None), tuned(DecodeSpec(5, sizes=(3, 2, 1))), target)
    found, _ = read_tuned(str(folder / "target"), None, target)
    assert (found.method, found.settings, found.predicted) == ("lookup", {"window": 5}, 1.25)
    (folder / "target" / TUNED).write_text("{}")
    with pytest.raises(ValueError, match=r"tuned.json: expected what jaxspec tune --save writes, got KeyError"):
        read_tuned(str(folder / "target"), None, target)
    (folder / "target" / TUNED).unlink()
    assert read_tuned(str(folder / "target"), None, target) == (None, "")


def test_the_embedded_pair_is_not_written_to():
    with pytest.raises(ValueError, match="expected a folder of a draft, or of a target, to save tuned.json in, got sh"):
        folder_to_save("shakespeare", None)
    assert read_tuned("shakespeare", None, models.target()) == (None, "")


@pytest.mark.slow
def test_tune_saves_and_generate_follows(published, capsys):
    """Without a draft: prompt lookup or plain decoding."""
    folder, _ = published
    where = ["--target", str(folder / "target")]
    main(["tune", *where, "--windows", "2", "--count", "2", "--new-tokens", "12", "--save"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"saved in {folder / 'target' / TUNED}"
    assert "by the cost model." in printed
    main(["generate", *where, "--prompt", PROMPT, "--max-new-tokens", "12"])
    assert f"{folder / 'target' / TUNED}: " in capsys.readouterr().err
    (folder / "target" / TUNED).unlink()
