"""Loaders of published files: any damaged file raises an error that names it; no file outside its folder is read."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxspec import Text
from jaxspec.loading.huggingface import load_huggingface
from jaxspec.loading.store import open_model
from tests.support.jaxspec import fuzz

ROOT = Path(__file__).parents[3]
#: Random cases for every file, in addition to the fixed list; ``make soak`` has more.
CASES = int(os.environ.get("FUZZ_CASES", 3))
#: Of the cases that are always tried, so many are refused.
LEAST = {"published": 40, "in parts": 40, "pieces": 7, "llama2c": 40, "own": 7, "pair": 20}


@pytest.mark.slow
def test_spoilt_files_are_refused_by_name():
    """No crash, hang or excess memory: the process may use 1 GiB, and a minute for each file."""
    command = [sys.executable, "-m", "tests.support.jaxspec.fuzz", str(CASES), *fuzz.KINDS]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *_, last = process.stdout.splitlines() or [""]
    assert process.returncode == 0, f"the process ended in the case {last}: {process.stderr[-2000:]}"
    for kind, counts in json.loads(last).items():
        assert counts["broke"] == []
        assert counts["refused"] >= LEAST[kind]


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    fuzz.in_parts(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/tmp/outside.safetensors", "..", "", 3, "below/x.safetensors"]
)
def test_an_index_names_no_file_elsewhere(published, name):
    index = published / "model.safetensors.index.json"
    (published.parent / "outside.safetensors").write_bytes(next(published.glob("*.safetensors")).read_bytes())
    about = json.loads(index.read_text())
    about["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"index.json: expected weight_map to name files of its own folder"):
        load_huggingface(published)


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"expected num_hidden_layers from 1 to the \d+ arrays there are, got 10{9}"),
        ({"vocab_size": 2**31 - 1}, r"expected at most \d+ numbers in embedding.* got 17179869176"),
        ({"hidden_size": 10**15}, "expected width of DecoderConfig to be int .*below 2.31"),
        ({"hidden_size": "8"}, "hidden_size|width"),
        ({"hidden_act": "swish"}, "expected an activation out of silu, .* got 'swish'"),
        ({"rms_norm_eps": float("nan")}, "expected epsilon of Block to be float .* got nan"),
        ({"vocab_size": None}, "expected vocab_size of DecoderConfig to be int .* got None"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_before_memory_is_taken(published, changes, message):
    change(published / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"{published}/config.json: .*({message})"):
        load_huggingface(published)


def test_arrays_of_another_kind_are_refused(published):
    from safetensors.numpy import load_file, save_file

    for file in published.glob("*.safetensors"):
        save_file({name: array.astype(np.int64) for name, array in load_file(file).items()}, file)
    with pytest.raises(
        ValueError, match=r"model-00001-of-\d+.safetensors: expected .* of F16, BF16, F32, F64, got I64"
    ):
        load_huggingface(published)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer"),
        ("tokenizer_config.json", "[]", "expected a JSON object, got list"),
        ("tokenizer_config.json", '{"chat_template": 3}', "expected chat_template to be text, got 3"),
        ("tokenizer_config.json", '{"bos_token": {"id": 3}}', "KeyError: 'content'"),
        ("generation_config.json", '{"eos_token_id": "2"}', "expected eos_token_id to be a token id or a list"),
        ("generation_config.json", "[" * 100_000, "expected JSON, got .*recursion"),
    ],
)
def test_texts_with_other_content_are_refused(published, file, content, message):
    (published / file).write_text(content)
    with pytest.raises(ValueError, match=rf"(?s){published}.*({message})"):
        Text.read(published)


#: Modules that open pickles, or hide them.
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
#: CIFAR is published as pickles: read there by an unpickler that calls no function named in them. The next two are the
#: ends of a pipe to a process that the benchmark itself starts. torch reads drafts with weights_only=True.
RESTRICTED = {"jaxfed/data/_pickles.py", "jaxspec/cli/_bench_methods.py", "jaxspec/cli/_bench_worker.py"}
RESTRICTED |= {"jaxspec/loading/_draft_files.py"}


def test_nothing_is_pickled():
    """No module imports pickle except these, and NumPy never loads pickles."""
    for path in sorted(file for package in ("jaxfed", "jaxspec") for file in (ROOT / package).rglob("*.py")):
        name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {each.split(".")[0] for each in imported} & PICKLERS or name in RESTRICTED, name
        keywords = [key for node in ast.walk(tree) if isinstance(node, ast.Call) for key in node.keywords]
        assert all(ast.literal_eval(key.value) is False for key in keywords if key.arg == "allow_pickle"), name


def test_a_model_of_pickles_is_not_opened(published):
    for file in published.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    (published / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="reading a pickle can run any code"):
        open_model(published)
