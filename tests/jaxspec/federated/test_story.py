"""The recipe of the embedded pair, and the demo, at toy size."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

from jaxfed import checkpoint
from jaxspec import zoo
from jaxspec.cli import demo
from jaxspec.federated import Federation
from jaxspec.models.config import DecoderConfig
from jaxspec.training import Schedule
from jaxspec.zoo import recipe as recipes

pytestmark = pytest.mark.slow

TOY = recipes.PairRecipe(
    target=DecoderConfig(1, 16, 2, 2, 2, 8, 32),
    draft=DecoderConfig(1, 8, 1, 2, 2, 4, 16),
    exit_layer=1,
    target_schedule=Schedule(steps=6, batch_size=2, sequence_length=32, warmup=2),
    draft_schedule=Schedule(steps=4, batch_size=2, sequence_length=32, warmup=2),
    stream_schedule=Schedule(steps=4, batch_size=2, sequence_length=48, warmup=2),
    held_out_characters=20_000,
)
DECODING = demo.DecodingSettings(
    prompts=2, prompt_tokens=16, new_tokens=16, rounds=1, windows=(1, 2), mirror=((2, 3),), num_candidates=2
)
FEDERATING = demo.FederatingSettings(
    clients=4,
    validation_roles=2,
    client_prompts=4,
    test_prompts=2,
    prompt_tokens=8,
    new_tokens=8,
    window=2,
    federation=Federation(rounds=2, cohort_size=2, local_steps=1, batch_size=2, evaluate_every=1),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A pair trained by the recipe at toy size, and its figures."""
    out = tmp_path_factory.mktemp("recipe")
    return out, recipes.main(TOY, out)


def test_the_recipe_reports_the_cost_of_the_exit_loss(trained: tuple[Path, dict]):
    """Held-out bits per character of the target with and without the exit loss, and their ratio."""
    bits = trained[1]["held_out_bits_per_character"]
    assert trained[1]["cost_of_exit_loss"] == pytest.approx(bits["target"] / bits["control"] - 1, abs=1e-4)
    assert bits["target"] != bits["control"]


def test_the_recipe_is_deterministic(trained: tuple[Path, dict], tmp_path: Path):
    """The same recipe gives the same weights; run again in the same folder it only loads them."""
    again = recipes.main(TOY, tmp_path)
    assert again == trained[1] == recipes.main(TOY, trained[0])
    same = (zoo.load(folder / "pair").target.params for folder in (tmp_path, trained[0]))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *same))


def test_the_demo_at_toy_size(trained: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All figures are present, tokens agree, pictures and the federated draft are written."""
    settings = demo.DemoSettings(str(trained[0] / "pair"), DECODING, FEDERATING)
    result = demo.run(settings, tmp_path, progress=False)
    assert result["identical"] is True
    assert result["tokens_compared"] == 2 * 16
    methods = "autoregressive", "speculative", "speculative, two meshes", "mirror"
    assert tuple(result["tokens_per_second"]) == methods
    gains = "all_devices", "same_placement", "same_placement_independent"
    assert all(result[f"mirror_over_{name}"] > 0 for name in gains)
    assert set(result["acceptance"]) == {"before", "fedspeed", "fedavg", "centralised"}
    assert 0 <= result["accepted_length"] <= 2
    assert 0 <= result["reuse_rate"] <= 1
    assert {"seconds", "versions", "milliseconds"} <= set(result)
    json.dumps(result)
    table = io.StringIO()
    demo.show(result, tmp_path, Console(file=table))
    assert "mirror" in table.getvalue()
    for name in ("timeline", "timeline_independent", "acceptance"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert checkpoint.manifest(tmp_path / "draft").kind == "draft"
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    import tables

    speed, over, gains = tables.demo([result])
    assert len(over.rows[0]) == 3
    assert [row[0] for row in speed.rows + gains.rows] == [*result["tokens_per_second"], *result["acceptance"]]


def test_help_lists_the_commands():
    """``--help`` lists the commands and starts no work."""
    done = subprocess.run([sys.executable, "-m", "jaxspec", "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "train", "generate"))
