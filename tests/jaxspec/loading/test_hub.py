"""Models by their name on the hub, against a local stand-in that speaks its HTTP: another process asks it."""

import json
import os
import subprocess
import sys

import pytest

import jaxspec
from jaxspec.loading.hub import folder_of, is_hub_name
from tests.support import hub
from tests.support.jaxspec import small

pytest.importorskip("huggingface_hub", reason="the huggingface_hub library is not installed: make setup")
PROGRAM = """
import sys, jaxspec
model = jaxspec.load_huggingface(sys.argv[1], revision=sys.argv[2] or None)
tokens = jaxspec.generate(jaxspec.autoregressive(model), ["My lord"], 4).tokens[0]
print(float(model.params["embedding"].sum()), *tokens)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one owner, with files that nobody needs."""
    root = tmp_path_factory.mktemp("hub")
    for name in ("small", "gated"):
        jaxspec.save_huggingface(small.pair().target, root / "someone" / name)
        (root / "someone" / name / "README.md").write_text("a card")
        (root / "someone" / name / "consolidated.safetensors").write_bytes(b"other layout")
        (root / "someone" / name / "pytorch_model.bin").write_bytes(b"a pickle")
    return root


def run(program, endpoint, home, *arguments, offline=False):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_model_by_its_name(models, tmp_path):
    """Downloaded once, only what is needed; afterwards without a network; also on the command line."""
    target = jaxspec.load_huggingface(models / "someone/small")
    expected = jaxspec.generate(jaxspec.autoregressive(target), ["My lord"], 4).tokens[0]
    with hub.serving(models) as (endpoint, asked):
        done = run(["-c", PROGRAM], endpoint, tmp_path, "someone/small", "")
        assert done.returncode == 0, done.stderr
        files = {line.rsplit("/", 1)[-1] for line in asked if "/resolve/" in line}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}
    found = done.stdout.split()
    assert float(found[0]) == pytest.approx(float(target.params["embedding"].sum()), rel=1e-4)
    assert list(map(int, found[1:])) == expected
    done = run(["-c", PROGRAM], endpoint, tmp_path, "someone/small", "", offline=True)
    assert done.stdout.split() == found, done.stderr
    more = "--target", "someone/small", "--prompt", "My lord", "--max-new-tokens", "4", "--json"
    done = run(["-m", "jaxspec", "generate", *more], endpoint, tmp_path, offline=True)
    assert json.loads(done.stdout)["tokens"] == expected, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("someone/else", "", "someone/else: expected a folder, or a model on the hub, got neither"),
        ("someone/small", "v9", "someone/small: expected a folder, or a model on the hub, got neither"),
        (
            "someone/gated",
            "",
            "someone/gated: expected a model that may be read, got one whose licence must be accepted",
        ),
    ],
)
def test_what_the_hub_does_not_give(name, revision, message, models, tmp_path):
    with hub.serving(models) as (endpoint, _):
        done = run(["-c", PROGRAM], endpoint, tmp_path, name, revision)
    assert message in done.stderr


@pytest.mark.slow
def test_without_a_network(tmp_path):
    done = run(["-c", PROGRAM], "http://127.0.0.1:9", tmp_path, "someone/small", "")
    assert "someone/small: expected a folder, or a model on the hub, got neither" in done.stderr
    assert "check the name, the network" in done.stderr


def test_names_and_paths(tmp_path, monkeypatch):
    """A folder that exists is a folder, whatever it is called."""
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("HuggingFaceTB/SmolLM2-135M")
    assert not any(map(is_hub_name, ("nowhere", "/tmp/model", "./out/model", "out/my/model", "~/model")))
    (tmp_path / "out/model").mkdir(parents=True)
    assert not is_hub_name("out/model")
    with pytest.raises(ValueError, match="expected a name on the hub with revision 'v1', got a path; leave it out"):
        folder_of("out/model", "v1")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"someone/small: .*pip install 'jaxfed-jaxspec\[hub\]'"):
        jaxspec.load_huggingface("someone/small")
