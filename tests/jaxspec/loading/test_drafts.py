"""Published drafts: every format goes out and comes back, and what does not belong together is refused by name."""

import json
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxspec
from jaxspec import load_draft, save_draft
from jaxspec.verify import Reads
from tests.support.jaxspec import draft_records as records


def quiet(line):
    """Drop the report."""


def copied(name, tmp_path, arrays=None, config=None):
    """A copy of a published folder with some arrays and settings replaced; None removes one."""
    shutil.copytree(records.FOLDER / name, tmp_path / name)
    (file,) = (tmp_path / name).glob("*.safetensors")
    found = load_file(file) | (arrays(load_file(file)) if arrays else {})
    save_file({key: np.ascontiguousarray(value) for key, value in found.items() if value is not None}, file)
    about = json.loads((tmp_path / name / "config.json").read_text()) | (config or {})
    (tmp_path / name / "config.json").write_text(
        json.dumps({key: value for key, value in about.items() if value != "-"})
    )
    return tmp_path / name


def equal(one, other):
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one.params, other.params)
    return one.drafter == other.drafter and jax.tree.all(same)


@pytest.mark.parametrize("name", [name for name in records.folders("*") if not name.startswith("target")])
def test_every_format_comes_back(name, tmp_path):
    made = records.draft(name)
    save_draft(made, tmp_path)
    again = load_draft(tmp_path, records.target(), report=quiet)
    if name == "medusa1_2layer":  # a repeated block is listed as two, as vLLM reads it
        assert [len(blocks) for blocks in again.params["blocks"]] == [2] * 3
        f = jax.random.normal(jax.random.key(0), (48, 1, 5))
        for head in range(3):
            one, other = (draft.drafter.network.logits(draft.params, f, head) for draft in (made, again))
            np.testing.assert_array_equal(one, other)
    else:
        assert equal(made, again)


def test_pickles_equal_safetensors_and_need_torch(monkeypatch):
    assert equal(records.draft("eagle3_raw_bin"), records.draft("eagle3_raw"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: expected safetensors, .* install torch"):
        load_draft(records.FOLDER / "eagle3_raw_bin", records.target(), report=quiet)


@pytest.mark.parametrize("flags", [{"fc_norm": True}, {"norm_output": True, "norm_before_residual": True}])
def test_settings_of_speculators_come_back(flags, tmp_path):
    made = records.draft("eagle3_spec_2layer")
    network = replace(made.drafter.network, **flags)
    fresh = network.init(jax.random.key(0))
    params = {**made.params, "fusion": fresh["fusion"]}
    made = made._replace(drafter=replace(made.drafter, network=network), params=params)
    save_draft(made, tmp_path)
    assert equal(made, load_draft(tmp_path, records.target(), report=quiet))


@pytest.mark.parametrize(
    ("ids", "convention", "taps"),
    [
        ([1, 3, 4], None, (2, 4, 5)),  # after: the first id is 1
        ([2, 4, 5], None, (2, 4, 5)),
        ([2, 4, 5], "after", (3, 5, 6)),
        ([1, 3, 4], "before", (1, 3, 4)),
    ],
)
def test_both_conventions_of_layer_ids(ids, convention, taps, tmp_path):
    config = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": ids}}
    folder, said = copied("eagle3_raw", tmp_path, config=config), []
    made = load_draft(folder, records.target(), tap_convention=convention, report=said.append)
    assert made.drafter.reads == Reads(taps)
    assert f"taps {taps} (ids {ids} of config.json" in said[0]


def test_taps_may_be_passed_and_are_reported(capsys):
    made = load_draft(records.FOLDER / "eagle3_raw", records.target(), taps=(0, 3, 8))
    assert made.drafter.reads == Reads((0, 3, 8))
    assert "taps (0, 3, 8) (as passed)" in capsys.readouterr().err


def test_a_draft_without_auxiliary_states_reads_the_last(tmp_path):
    arrays, config = lambda found: {"fc.weight": None}, {"eagle_config": {"use_aux_hidden_state": False}}  # noqa: E731
    made = load_draft(copied("eagle3_raw", tmp_path, arrays, config), records.target(), report=quiet)
    assert made.drafter.reads == Reads(final=True)


def test_what_the_target_has_is_shared():
    embedding = records.target().params["embedding"]
    assert records.draft("eagle3_raw").params["embedding"] is embedding
    assert records.draft("eagle1_raw_bias").params["embedding"] is embedding
    assert records.draft("eagle3_spec_31").params["embedding"] is not embedding
    assert records.draft("medusa1_sharedhead").params["heads"][0] is records.target().params["head"]


def test_medusa_2_is_a_target_with_its_heads(tmp_path):
    folder = records.FOLDER / "medusa2"
    backbone = jaxspec.load_huggingface(folder)
    made = load_draft(folder, backbone, report=quiet)
    prompt = [[3, 1, 4, 1, 5]]
    plain = jaxspec.generate(jaxspec.autoregressive(backbone), prompt, 8)
    assert jaxspec.generate(jaxspec.speculative(backbone, made, 3), prompt, 8).tokens == plain.tokens
    tuned = copied("medusa2", tmp_path, lambda found: {"model.norm.weight": found["model.norm.weight"] * 1.01})
    with pytest.raises(ValueError, match=r"trained along with its heads, got another model.norm.weight"):
        load_draft(tuned, backbone, report=quiet)


def without(*names):
    return lambda found: dict.fromkeys(names)


def twice(found):
    """Two tokens of the draft are one of the target."""
    return {"d2t": np.concatenate([found["d2t"][:1], found["d2t"][:1] - 1, found["d2t"][2:]])}


REFUSED = [
    ("eagle3_raw", lambda found: {"fc.weight": found["fc.weight"][:, :96]}, {}, "over 3 hidden states of 48 features"),
    ("eagle3_raw", without("midlayer.mlp.up_proj.weight"), {}, "expected an array layers.0.mlp.up_proj.weight"),
    (
        "eagle3_raw",
        lambda found: {"extra": np.zeros(3, np.float32)},
        {},
        "arrays that no draft of this kind has: extra",
    ),
    ("eagle3_raw", twice, {}, "expected d2t of offsets to 61 different tokens"),
    ("eagle3_raw", lambda found: {"d2t": found["t2d"].nonzero()[0]}, {}, "expected (d2t of offsets|t2d to mark)"),
    ("eagle3_raw", lambda found: {"t2d": ~found["t2d"]}, {}, "expected t2d to mark the 61 tokens of d2t, got 70 marks"),
    ("eagle3_raw", lambda found: {"d2t": found["d2t"][:60]}, {}, "expected d2t of 61 offsets"),
    ("eagle3_raw", None, {"num_attention_heads": 5}, "config.json belongs to other weights"),
    ("eagle3_raw", None, {"norm_output": False}, "a norm before its head"),
    ("eagle1_raw_bias", without("fc.bias"), {}, "expected fc.bias as bias of config.json says"),
    ("eagle1_raw_bias", None, {"bias": False}, "expected fc.bias as bias of config.json says"),
    ("hydrapp", None, {"hidden_state_offset": 1}, "got hidden_state_offset 1"),
    ("hydrapp", without("hydra_lm_head.1.1.bias"), {}, "expected an array hydra_lm_head.1.bias"),
    (
        "medusa1_safetensors",
        without("1.1.weight"),
        {},
        "an output head for each of 3 heads, one for all, or none, got 2",
    ),
]


@pytest.mark.parametrize(("name", "arrays", "config", "message"), REFUSED)
def test_files_that_contradict_each_other_are_refused(name, arrays, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_draft(copied(name, tmp_path, arrays, config), records.target(), report=quiet)


@pytest.mark.parametrize("name", ["eagle3_raw", "eagle1_raw_bias", "medusa1_safetensors", "hydrapp"])
def test_a_draft_of_another_target_is_refused(name):
    other = jaxspec.decoder(jaxspec.DecoderConfig(131, 32, 8, 4, 2, 8, 48), jax.random.key(0))
    with pytest.raises(ValueError, match="of another target|made for, or its|config.json belongs|was made"):
        load_draft(records.FOLDER / name, other, report=quiet)


@pytest.mark.parametrize("name", ["eagle3_raw", "eagle1_raw_bias", "medusa1_safetensors", "hydrapp"])
def test_a_draft_of_another_vocabulary_is_refused(name):
    config = replace(records.target().network.config, vocab_size=140)
    other = jaxspec.decoder(config, jax.random.key(0))
    with pytest.raises(ValueError, match="140|another target"):
        load_draft(records.FOLDER / name, other, report=quiet)


def test_taps_must_lie_in_the_target():
    with pytest.raises(ValueError, match=r"expected ascending taps from 0 to 8 .* got \(2, 4, 9\); pass other taps="):
        load_draft(records.FOLDER / "eagle3_raw", records.target(), taps=(2, 4, 9), report=quiet)
    with pytest.raises(ValueError, match="expected no taps"):
        load_draft(records.FOLDER / "hydrapp", records.target(), taps=(2,), report=quiet)
    with pytest.raises(ValueError, match=r"at least 7 layers for taps .* got 6"):
        load_draft(records.FOLDER / "eagle3_raw", records.target("target_l6"), report=quiet)


def test_folders_without_a_draft_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got no config.json"):
        load_draft(tmp_path, records.target())
    with pytest.raises(ValueError, match="a language model as a draft is read by load_huggingface"):
        load_draft(records.FOLDER / "target", records.target(), report=quiet)
    with pytest.raises(ValueError, match="expected tap_convention"):
        load_draft(records.FOLDER / "eagle3_raw", records.target(), tap_convention="middle")
    with pytest.raises(ValueError, match="a language model is written by"):
        save_draft(jaxspec.drafts.prompt_lookup(2), tmp_path)
