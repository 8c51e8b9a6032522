"""``python -m jaxspec``: what the commands print and write, and their errors."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxspec
from jaxspec import zoo
from jaxspec.__main__ import main
from jaxspec.cli import _methods as methods
from jaxspec.drafts import init_draft, trees
from jaxspec.loading import save_draft
from tests.support.jaxspec import small

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
    result = run(capsys, "generate", *where, "--method", method, "--prompt", PROMPT, "--max-new-tokens", 12)
    assert result["tokens"] == expected.tokens[0]
    assert result["text"] == expected.text[0]
    assert result["finish_reason"] == "length"
    assert result["stats"]["new_tokens"] == 12
    assert result["stats"]["compiled"] == 0 < result["compile_seconds"]
    assert result["tokens_per_second"] == pytest.approx(12 / result["seconds"])


def test_a_pair_needs_no_draft(capsys):
    """The embedded pair is the default target."""
    expected = jaxspec.generate(jaxspec.autoregressive(zoo.load().target), [PROMPT], 12)
    result = run(capsys, "generate", "--prompt", PROMPT, "--max-new-tokens", 12)
    assert result["tokens"] == expected.tokens[0]
    assert result["stats"]["accepted"] > 0


@pytest.fixture(scope="module")
def drafts(tmp_path_factory):
    """A pair with drafts that read hidden states, one of them also in a folder of its own."""
    folder, pair = tmp_path_factory.mktemp("drafts"), small.pair()
    made = {
        "early": init_draft("eagle3", pair.target, taps=(0, 1)),
        "heads": init_draft("medusa", pair.target, heads=2),
    }
    zoo.save(pair._replace(drafts=made), folder / "pair")
    save_draft(made["heads"], folder / "heads")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        "--target PAIR --draft early",
        "--target PAIR --draft early --tree 3,2",
        "--target TARGET --draft HEADS",
        "--target TARGET --draft HEADS --tree dynamic:2,2,4 --dtype float32",
    ],
)
def test_a_draft_that_reads_hidden_states(options, drafts, published, expected, capsys):
    """By name of the pair's, or a folder; windows are as long as its heads allow."""
    places = {"PAIR": drafts / "pair", "TARGET": published / "target", "HEADS": drafts / "heads"}
    flags = [places.get(word, word) for word in options.split()]
    result = run(capsys, "generate", *flags, "--prompt", PROMPT, "--max-new-tokens", 12)
    assert result["tokens"] == expected.tokens[0]


def test_doctor_counts_the_bytes_of_hidden_states(drafts, capsys):
    """The exit's candidates, and a fused vector for each of γ+1 positions."""
    options = "--window", 3, "--num-candidates", 2, "--max-new-tokens", 8
    result = run(capsys, "doctor", "--target", drafts / "pair", "--draft", "early", *options)
    width = small.pair().target.network.config.width
    assert (result["candidates_bytes"], result["early_features_bytes"]) == (4 * 2 * 8 + 3 * 4, 4 * width * 4)
    assert (result["verdict_bytes"], result["late_features_bytes"], result["window_bytes"]) == (12, 0, 12)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("federate --streams 1", "expected a language model as a draft to limit its streams, got .*FeatureDrafter"),
        ("federate --kind eagle3", "expected --kind or --draft, got eagle3 and heads; leave one out"),
        ("probe", "expected a language model as --draft for jaxspec probe"),
        ("train draft --kind streams", "expected a language model as --draft for jaxspec train draft --kind streams"),
        (
            "generate --prompt x --streams 1",
            "expected a language model as a draft to limit its streams, got .*FeatureDrafter",
        ),
        ("generate --prompt x --window 3", "at most 2 levels, since the draft has 2 heads"),
        ("generate --prompt x --tree 1,1,1", "expected a window or a tree of at most 2 levels"),
    ],
)
def test_what_such_a_draft_cannot_do(command, message, drafts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"jaxspec: .*{message}"):
        main([*command.split(), "--target", str(drafts / "pair"), "--draft", "heads"])


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("4,2,1", trees.static((4, 2, 1))),
        ("3", trees.static((3,))),
        ("dynamic", trees.dynamic()),
        ("dynamic:4,3,9", trees.dynamic(4, 3, 9)),
    ],
)
def test_trees_by_name(text, tree):
    assert methods.tree_named(text) == tree


def test_a_target_with_nan_ends_the_command_after_the_text_so_far(tmp_path, capsys):
    """Here the text is empty, since even the first logits are NaN."""
    target = small.pair().target
    broken = jax.tree.map(lambda leaf: leaf.at[...].set(np.nan), target.params["layers"][1])
    layers = [target.params["layers"][0], broken]
    jaxspec.save_huggingface(target._replace(params={**target.params, "layers": layers}), tmp_path / "nan")
    where = ["--target", str(tmp_path / "nan"), "--max-new-tokens", "4", "--method", "autoregressive"]
    with pytest.raises(SystemExit, match=r"jaxspec: .* NaN or infinity in sequence 0 \(position \d+\).*layers/1"):
        main(["generate", *where, "--prompt", PROMPT])
    assert capsys.readouterr().out.strip() == ""


def test_without_json_prompt_and_continuation_are_printed(small_pair, expected, capsys):
    where = ["--target", str(small_pair)]
    main(["generate", *where, "--prompt", PROMPT, "--max-new-tokens", "12", "--method", "autoregressive"])
    assert capsys.readouterr().out.startswith(PROMPT + expected.text[0])


def test_options_reach_the_sampler(small_pair, capsys):
    pair = small.pair()
    options = {"temperature": 0.9, "top_p": 0.8, "top_k": 9, "seed": 5}
    expected = jaxspec.generate(
        jaxspec.autoregressive(pair.target), [PROMPT], 30, sampling=jaxspec.Sampling(**options), stop=["a"]
    )
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    where = "--target", small_pair, "--prompt", PROMPT
    result = run(capsys, "generate", *where, "--max-new-tokens", 30, *flags, "--stop", "a")
    assert result["tokens"] == expected.tokens[0]
    assert result["finish_reason"] == expected.finish_reason[0] == "stop"
    assert "a" not in result["text"]


def test_converting_there_and_back_changes_no_weight(published, tmp_path, expected, capsys):
    assert run(capsys, "convert", published / "target", tmp_path / "ours")["wrote"] == "checkpoint"
    assert run(capsys, "convert", tmp_path / "ours", tmp_path / "back")["wrote"] == "huggingface"
    before, after = (load_file(folder / "model.safetensors") for folder in (published / "target", tmp_path / "back"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    result = run(
        capsys, "generate", "--target", tmp_path / "ours", "--method", "autoregressive", "--prompt", PROMPT,
        "--max-new-tokens", 12,
    )  # fmt: skip
    assert result["tokens"] == expected.tokens[0]


def test_a_converted_model_loads_onto_a_mesh(published, tmp_path, expected):
    from jaxspec.loading.store import convert, load_model

    convert(published / "target", tmp_path / "ours")
    for size in (2, 4):
        mesh = jaxspec.mesh_of(jax.devices()[:size])
        method = jaxspec.autoregressive(load_model(tmp_path / "ours", mesh), mesh)
        assert jaxspec.generate(method, [PROMPT], 12).tokens == expected.tokens


def test_int8_weights_are_saved_and_loaded(tmp_path):
    from jaxspec.loading.store import load_model, save_model

    pair = zoo.load()
    small = pair.draft._replace(params=jaxspec.quantized(pair.draft.params))
    save_model(small, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path).params, small.params)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "--prompt", "x", "--target", "nowhere"), "nowhere: expected a folder with config.json"),
        (("generate", "--prompt", "x", "--temperature", "-1"), "expected temperature >= 0"),
        (("generate", "--prompt", ""), "expected a prompt, got an empty one; pass --prompt TEXT, --prompts FILE, or"),
        (("generate", "--prompt", "x", "--window", "0"), "expected window >= 1"),
        (("generate", "--prompt", "x", "--chat"), "expected a model with a chat template"),
        (("convert", "nowhere", "out"), "nowhere: expected a folder with config.json"),
    ],
)
def test_bad_input_is_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"jaxspec: .*{message}"):
        main(args)


NO_DRAFT = "expected --draft for {}, got none; pass a smaller model with the same tokenizer"
#: Commands to which "--target BROKEN" is added, and the error that comes before BROKEN is opened.
EARLY = {
    "generate": ("generate --prompt x --method mirror", NO_DRAFT.format("--method mirror")),
    "doctor": ("doctor", NO_DRAFT.format("jaxspec doctor")),
    "probe": ("probe --propose", NO_DRAFT.format("--propose")),
    "bench": ("bench QUESTIONS", NO_DRAFT.format("--methods speculative mirror")),
    "federate": ("federate", NO_DRAFT.format("jaxspec federate")),
    "temperature": ("generate --prompt x --temperature -1", "expected temperature >= 0"),
    "tokens": ("generate --prompt x --max-new-tokens 0", "expected max_new_tokens >= 1"),
    "window": ("generate --prompt x --window 0", "expected window >= 1, got 0"),
    "tree": ("generate --prompt x --tree wide", "expected a tree such as 4,2,1 .*got 'wide'"),
    "numbers of a tree": ("generate --prompt x --tree dynamic:4,3", "expected dynamic:TOP_K,DEPTH,NODES or dynamic"),
    "children of a tree": ("generate --prompt x --tree 4,0", "expected 1 <= children of a node"),
    "tree and mirror": ("generate --prompt x --method mirror --tree 2", "expected the method speculative with --tree"),
    "tree of doctor": ("doctor --tree 2", "expected the method speculative with --tree, got mirror"),
    "tree of bench": ("bench QUESTIONS --methods mirror --tree 2", "expected the method speculative with --tree"),
    "tree and ratio": ("generate --prompt x --tree 2 --acceptance ratio", "expected --acceptance match with --tree"),
    "tree without a draft": ("generate --prompt x --tree 2", NO_DRAFT.format("--tree")),
    "streams": ("generate --prompt x --streams -1", "expected streams >= 0, got -1"),
    "empty stop": ("generate --prompt x --stop", "expected stop strings that are not empty"),
    "dtype": ("generate --prompt x --dtype int4", "expected dtype float32, bfloat16, float16, got 'int4'"),
    "draft": ("generate --prompt x --draft NOWHERE", "NOWHERE: expected a folder with config.json, .*got no such path"),
    "doctor's tokens": ("doctor --max-new-tokens 0", "expected max_new_tokens >= 1, got 0"),
    "probe's window": ("probe --window 0", "expected window >= 1, got 0"),
    "probe's candidates": ("probe --num-candidates 0 4", r"expected num_candidates >= 1, got \(0, 4\)"),
    "probe's tokens": ("probe --window 7 --new-tokens 7", "expected new_tokens >= 8, got 7"),
    "probe's picture": ("probe --plot FILE/picture.png", "FILE: expected a folder that can be written to, .*is a file"),
    "probe's texts": ("probe --texts NOWHERE", "NOWHERE: expected a file or folder to read, got no such path"),
    "doctor's prompts": ("doctor --prompts NOWHERE", "NOWHERE: expected a file or folder to read, got no such path"),
    "doctor's count": ("doctor --count 0", "expected count >= 1, got 0"),
    "whatif's draft": ("whatif", NO_DRAFT.format("jaxspec whatif --target")),
    "whatif's tokens": ("whatif --new-tokens 7", "expected new_tokens >= 8, got 7"),
    "whatif's share": ("whatif --exit-share 2", r"expected shares in \[0, 1\], got 2"),
    "questions": ("bench NOWHERE", "NOWHERE: expected a file or folder to read"),
    "runs": ("bench QUESTIONS --runs 0", "expected runs >= 1, got 0"),
    "federate's out": ("federate --out FILE", "FILE: expected a folder that can be written to"),
    "federate's texts": ("federate --texts NOWHERE", "NOWHERE: expected a file or folder to read"),
    "clients": ("federate --clients 0", "expected clients >= 1, got 0"),
    "cohort": ("federate --clients 4", r"expected at least 8 clients \(a cohort\)"),
    "share": ("federate --validation-share 1", r"expected validation_share in \(0, 1\), got 1"),
    "radius": ("federate --federation.fedspeed.ascent-radius -1", "ascent_radius"),
    "heads of a federation": ("federate --kind medusa --heads 0", "expected heads >= 1, got 0"),
    "alone": ("federate --method local-only", "expected a method that makes one draft, got 'local-only'"),
}


@pytest.fixture
def broken(tmp_path):
    """A folder with an empty config.json, a file, and a file of one question."""
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "config.json").write_text("{}")
    (tmp_path / "FILE").write_text("mine")
    (tmp_path / "QUESTIONS").write_text(json.dumps({"question_id": 1, "category": "qa", "turns": ["?"]}))
    return tmp_path


@pytest.mark.parametrize("name", EARLY)
def test_arguments_are_checked_before_anything_is_loaded(name, broken, monkeypatch):
    monkeypatch.chdir(broken)
    command, message = EARLY[name]
    parts = [*command.split(), *([""] if name == "empty stop" else [])]
    with pytest.raises(SystemExit, match=f"jaxspec: .*{message}"):
        main([*parts, "--target", "BROKEN"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--federation.rounds 0", "expected rounds >= 1"),
        ("--federation.learning-rates 0", "expected learning_rates > 0"),
        ("--distilling.top-k 0", "expected top_k >= 1"),
        ("--lora.rank 0", "rank must be a finite number ≥ 1, got 0"),
    ],
)
def test_settings_are_checked_while_they_are_parsed(option, message, capsys):
    """tyro prints the error to standard error and exits with status 2."""
    with pytest.raises(SystemExit, match="2"):
        main(["federate", *option.split()])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target BROKEN", "expected one target, got BROKEN and --target BROKEN; leave one out"),
        ("--save --draft FILE", "expected a folder of a draft, or of a target, to save tuned.json in, got FILE"),
        ("--windows 3 --new-tokens 3", "expected new_tokens >= 4, got 3"),
        ("--windows 0", "expected windows and candidates, each number >= 1"),
        ("--batch 0", "expected batch >= 1, got 0"),
    ],
)
def test_tune_checks_its_arguments_before_it_loads(options, message, broken, monkeypatch):
    monkeypatch.chdir(broken)
    with pytest.raises(SystemExit, match=f"jaxspec: .*{message}"):
        main(["tune", "BROKEN", *options.split()])


@pytest.mark.parametrize(
    "command", ["convert BROKEN FILE/out", "whatif --plot FILE/picture.png", "demo --out FILE", "train --out FILE/out"]
)
def test_an_output_that_cannot_be_written(command, broken, monkeypatch):
    monkeypatch.chdir(broken)
    with pytest.raises(SystemExit, match="jaxspec: FILE.*: expected a folder that can be written to, got FILE, which"):
        main(command.split())


def test_dtype_and_int8_apply_to_a_pair(small_pair):
    result = methods.load(str(small_pair), None, "bfloat16", int8=True)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(result.target.params)}
    assert {"int8", "bfloat16"} <= kinds
    assert "bfloat16" in {leaf.dtype.name for leaf in jax.tree.leaves(result.draft.params)}


def test_convert_does_not_overwrite(published, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="expected a new or empty folder"):
        main(["convert", str(published / "target"), str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
