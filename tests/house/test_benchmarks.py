"""The benchmarks at toy size: what they print, draw and record."""

import dataclasses
import gzip
import json
import struct
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxfed
import jaxspec
from jaxspec import zoo
from jaxspec.analysis.timing import DraftTimes, Primitives, TargetPass
from jaxspec.cli._bench_methods import Measurement
from jaxspec.drafts import trees
from tests.support.jaxspec import models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def write_idx(path: Path, array: np.ndarray) -> None:
    """A gzipped idx file of bytes."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def toy_images(tmp_path):
    """Fashion-MNIST's four files with 800 and 200 images, a bright row for every class."""
    draw = np.random.default_rng(0)
    for prefix, size in (("train", 800), ("t10k", 200)):
        labels = draw.integers(0, 10, size)
        images = draw.integers(0, 100, (size, 28, 28))
        images[np.arange(size), 2 * labels] = 200
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return tmp_path


@pytest.mark.slow
def test_sweeps_are_compared_with_runs_one_by_one(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import sweeps

    monkeypatch.setattr(sweeps, "CLIENTS", 12)
    monkeypatch.setattr(sweeps, "RATES", (0.1, 0.3))
    monkeypatch.setattr(sweeps, "SEEDS", range(2))
    monkeypatch.setattr("sys.argv", ["sweeps.py", "--rounds", "2", "--at-once", "1", "4", "--json"])
    sweeps.main()
    found = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    assert [(each["way"], each["at_once"], each["runs"]) for each in found] == [
        ("sweep", 1, 4),
        ("sweep", 4, 4),
        ("separate", 1, 4),
    ]
    assert all(each["ratio_to_steps"] > 0 and each["seconds"] > 0 for each in found)


@pytest.mark.slow
def test_reproduce_compares_with_the_published_orderings(toy_images, monkeypatch, capsys):
    """Rows in the documented order, equal to `simulate`'s accuracies, and not run twice."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reproduce
    import reproduction

    scope = reproduce.Scope("mlp", ("fedspeed", "fedavg"), ("iid", "0.1"), (1, 5), seeds=2, samples_per_client=8)
    out, picture = toy_images / "rows.jsonl", toy_images / "picture.png"
    options = reproduce.Options(toy_images, rounds=4, evaluate_every=2, out=out, picture=picture, json=True)
    reproduce.main(scope, options)
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    grid = [("fedavg", "iid", 5), ("fedspeed", "iid", 5), ("fedavg", "0.1", 5), ("fedspeed", "0.1", 5)]
    at_equal_samples = [("fedavg", "0.1", 1), ("fedspeed", "0.1", 1)]
    assert [(row["algorithm"], row["partition"], row["epochs"]) for row in rows] == grid + at_equal_samples
    assert all(row["rounds"] * row["local_steps"] == 4 for row in rows)
    assert all(row["rounds_to_target"] is not None for row in rows if row["algorithm"] == "fedavg")
    result = last["orderings"]
    assert list(result["fedspeed_above_fedavg"]) == ["iid", "0.1"]
    assert result["margin_with_local_epochs"]["margins"].keys() == {"1", "5"}
    assert picture.stat().st_size > 0

    import tables

    best, ladder, apart = tables.reproduce([*rows, last])
    assert best.head == ["algorithm", "iid", "0.1"]
    assert best.rows[1][2] == f"{rows[3]['best']:.1f} ± {rows[3]['best_std']:.1f}"
    assert ladder.head == ["algorithm", "1", "5"]
    assert [row[0] for row in apart.rows] == ["iid", "0.1"]

    written = out.read_text()
    reproduce.main(scope, options)
    assert out.read_text() == written
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == last

    task = reproduction.problem(toy_images, "mlp", ("0.1",), 2, 8, False)
    params, _ = jaxfed.models.functional(task.build(1))
    loss_fn = jaxfed.models.cross_entropy(task.apply)
    algorithm = jaxfed.fedspeed(loss_fn, **reproduction.SHARED)
    _, history = jaxfed.simulate(
        algorithm, algorithm.init(params, 100), task.worlds["0.1", 1].data, rounds=4, batching=jaxfed.Steps(1, 50),
        sampler=jaxfed.FixedSize(10), layout=jaxfed.Layout(jaxfed.map()), seed=1,
        report=jaxfed.Report(task.evaluate, every=2, progress=False),
    )  # fmt: skip
    row = next(row for row in map(json.loads, written.splitlines()) if row["run"] == ["fedspeed", "0.1", 5, 1])
    np.testing.assert_allclose(row["curve"], history.evaluations["accuracy"], atol=0.006)
    assert jax.default_backend() == rows[0]["device"]


@pytest.mark.slow
def test_a_reproduction_that_was_interrupted_goes_on_and_ends_the_same(toy_images, monkeypatch, capsys):
    """Stopped before every round, then within a run: the same accuracies; equal rounds take the same runs further."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reproduce
    import reproduction_runs

    scope = reproduce.Scope("mlp", ("fedavg", "fedspeed"), ("0.1",), (1, 5), ("samples", "rounds"), 2, ("fedavg",), 8)
    options = reproduce.Options(
        toy_images, rounds=4, evaluate_every=1, picture=toy_images / "a.png", out=toy_images / "whole.jsonl", json=True
    )
    reproduce.main(scope, options)
    *whole, last = map(json.loads, capsys.readouterr().out.splitlines())
    cells = [(row["algorithm"], row["epochs"], row["equal"], row["rounds"], row["seeds"]) for row in whole]
    assert cells == [
        ("fedavg", 5, "all", 4, 2), ("fedspeed", 5, "all", 4, 1),
        ("fedavg", 1, "samples", 4, 2), ("fedspeed", 1, "samples", 4, 1),
        ("fedavg", 1, "rounds", 4, 2), ("fedspeed", 1, "rounds", 4, 1),
    ]  # fmt: skip
    assert last["orderings"]["margin_at_equal_rounds"]["margins"].keys() == {"1", "5"}

    pieces = dataclasses.replace(options, out=toy_images / "pieces.jsonl", pause_after=0.0)
    reproduce.main(scope, pieces)
    assert len(json.loads(capsys.readouterr().out)["left"]) == 6
    left = iter([False] * 3 + [True] * 10_000)
    monkeypatch.setattr(reproduction_runs.Runs, "over", property(lambda runs: next(left)))
    reproduce.main(scope, pieces)
    assert len(json.loads(capsys.readouterr().out)["left"]) == 6
    (kept,) = (toy_images / "pieces.jsonl.runs").iterdir()
    assert kept.name.startswith("fedavg-0.1-5-0-")
    monkeypatch.setattr(reproduction_runs.Runs, "over", property(lambda runs: False))
    reproduce.main(scope, pieces)
    *found, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["best"] for row in found] == [row["best"] for row in whole]
    assert [row["last"] for row in found] == [row["last"] for row in whole]
    assert not list((toy_images / "pieces.jsonl.runs").iterdir())


@pytest.mark.slow
def test_the_published_setting_reads_cifar_augments_it_and_computes_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reproduce
    import reproduction

    draw = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = draw.integers(0, 256, (40, 3073))
        records[:, 0] = draw.integers(0, 10, 40)
        (tmp_path / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    scope = reproduce.Scope("cifar").complete()
    assert (scope.partitions, scope.epochs, scope.mean_samples) == (("0.6",), (5,), 500)
    assert scope.algorithms == ("fedavg", "fedspeed", "feddyn", "scaffold")
    task = reproduction.problem(tmp_path, "cifar", ("0.6",), 1, 2, False)
    assert task.worlds["0.6", 0].data.arrays["x"].shape == (200, 32, 32, 3)
    params, _ = jaxfed.models.functional(task.build(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_181_642
    data = task.worlds["0.6", 0].data.arrays
    batch = {"x": data["x"][:2], "y": data["y"][:2], "mask": np.ones(2, bool)}
    with jax.numpy_dtype_promotion("standard"):  # Flax's normalisation widens bfloat16 itself
        losses = [
            float(jax.jit(task.loss_fn(narrow))(params, batch, jax.random.key(seed))[0])
            for narrow in (False, True) for seed in (0, 1)
        ]  # fmt: skip
    assert losses[0] != losses[1]  # augmented by the key
    assert abs(losses[0] - losses[2]) < 0.05 * losses[0]
    assert losses[0] != losses[2]


def test_reproduce_refuses_what_is_not_there(toy_images, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reproduce

    with pytest.raises(ValueError, match="expected a tpu, got cpu; leave out --device"):
        reproduce.Options(toy_images, device="tpu")
    with pytest.raises(ValueError, match="precision"):
        reproduce.Options(toy_images, precision="float16")
    with pytest.raises(ValueError, match="equal"):
        reproduce.Scope(equal=("time",))


def test_reproduce_without_images_is_skipped(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("JAXFED_FASHION_MNIST", raising=False)
    import reproduce

    reproduce.main()
    assert list(json.loads(capsys.readouterr().out)) == ["skipped"]


@pytest.mark.slow
@pytest.mark.peers("torch")
def test_rounds_times_the_plans_that_fit_in_memory(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rounds
    import sides

    small = dataclasses.replace(rounds.NETWORKS["mlp"], plans=("vmap", "map"), local_steps={10: 2})
    monkeypatch.setitem(rounds.NETWORKS, "mlp", small)
    setting = sides.setting(sides.Case("mlp", "fedspeed", 10), small.batches(10, 2))
    monkeypatch.setattr(rounds, "MOST_BYTES", 1.01 * sides.compiled(setting, "map").peak_bytes)
    options = rounds.Options(("mlp",), ("fedspeed",), (10,), minutes=0.02, repeats=1, json=True)
    rounds.main(options)
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    timed, too_large, auto = rows
    assert (too_large["plan"], set(too_large)) == ("vmap", {"model", "algorithm", "cohort", "plan", "skipped"})
    assert (timed["plan"], auto["plan"], auto["chosen"]) == ("map", "auto", "map")
    assert timed["ratio_to_torch"] == pytest.approx(timed["torch_ms"] / timed["ms_per_local_step"])
    assert timed["ratio_to_floor"] == pytest.approx(timed["ms_per_local_step"] / timed["floor_ms"])
    assert timed["gemm_ms"] > 0
    import tables

    (row,) = next(tables.rounds(rows)).rows
    assert row[:2] == ["mlp, fedspeed, 10", "map"]


@pytest.mark.slow
def test_the_mirror_suite_proposes_by_the_cost_model(monkeypatch, tmp_path):
    """Shorter windows and fewer branches where the draft is slow; a case for every target and draft; a picture."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import mirror

    pair = zoo.load()
    cases = mirror.cases(pair, ("13M", "50M"), ("0.4M", "3.0M"))
    assert [(case.growth, round(case.target_parameters / 1e6)) for case in cases] == [
        ((1, 2, 1, 1), 13),
        ((2, 2, 1, 1), 50),
        ((2, 2, 2, 2), 50),
    ]
    tiny = zoo.Pair(models.target(), models.draft(), jaxspec.LogitLens(), 2, pair.tokenizer, {})
    replay = mirror.PairReplay.of(tiny, [[1, 5, 3], [7, 2, 9], [4, 4, 8]], 48)

    def proposed(draft_pass):
        passes = {window: TargetPass(10.0 + 0.1 * window, 5.0, 5.0, 0.0) for window in mirror.WINDOWS}
        drafting = DraftTimes(0.0, {1: draft_pass, 64: 8 * draft_pass}, {1: 0.0, 64: 0.0})
        rough = Primitives(9.0, passes, 2, 4, drafting, drafting, 0.0)
        return mirror.shortlist(replay, rough, (1, 1, 1, 1), 2)

    cheap, expensive = proposed(0.01), proposed(5.0)
    assert list(cheap) == [
        "autoregressive", "sd", "mirror", "pearl", "saguaro", "ahead", "hybrid", "mirror+streaming"
    ]  # fmt: skip
    assert expensive["sd"][0].spec.window < cheap["sd"][0].spec.window
    drafted = lambda spec: spec.window * spec.policy.exit.budget  # noqa: E731
    assert drafted(expensive["mirror"][0].spec) < drafted(cheap["mirror"][0].spec)
    assert [setting.streams for setting in cheap["mirror+streaming"]] == [1, 2]
    line = {"target_parameters": 5e7, "draft_over_target": 0.1, "ratio_to_autoregressive": 2.0}
    lines = [{**line, "method": name, "step_ms": 3.0, "law_ms": 2.5} for name in ("sd", "mirror")]
    mirror.draw(lines, tmp_path / "mirror.png")
    assert (tmp_path / "mirror.png").stat().st_size > 0


def test_the_suite_of_drafts_covers_chains_trees_and_mirror(monkeypatch, tmp_path):
    """Every draft with the same numbers of nodes, heads no deeper than they are; lines make tables and a picture."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import draft_kinds
    import tables

    pair, table = zoo.load(), np.full((4, 8), 0.1)
    table[:, 0] = 0.5
    most = {kind: draft_kinds.most_tokens(pair, kind) for kind in draft_kinds.KINDS}
    rows = {kind: list(draft_kinds.rows_of(pair, kind, table[: most[kind]])) for kind in draft_kinds.KINDS}
    for kind, own in rows.items():
        assert {row.nodes for row in own if "chain" not in row.tree} == set(draft_kinds.NODES)
        depths = [row.setting.spec.window or row.setting.spec.tree.max_depth for row in own]
        assert max(depths) <= most[kind]
    turns = [Measurement([[1, 2]], 0.5 * slow, 1.5, 0.25, 0.01, 0.4 * slow) for slow in (1, 2, 4)]
    monkeypatch.setattr(draft_kinds, "draft_ms", lambda *_: 0.5)
    runs = dict.fromkeys((row.setting for own in rows.values() for row in own), turns)
    runs[draft_kinds.BenchSetting()] = [run._replace(seconds=2 * run.seconds) for run in turns]
    lines = [line for own in rows.values() for line in draft_kinds.lines_of(pair, own, runs, [1])]
    assert {line["ratio_to_autoregressive"] for line in lines if "tau" in line} == {2.0}
    assert [line["overhead"] for line in lines if "overhead" in line] == [0.0, 0.0, 0.0]
    draft_kinds.draw([line for line in lines if "tau" in line], tmp_path / "drafts.png")
    assert (tmp_path / "drafts.png").stat().st_size > 0
    tokens, *_, last = tables.draft_kinds(lines)
    assert [name.split(",")[0] for name in tokens.head] == ["tree", *draft_kinds.KINDS]
    assert last.rows[0][1] == "True"


@pytest.mark.slow
def test_a_chain_covers_the_verdicts_of_its_windows(monkeypatch):
    """With all candidates every verdict is covered; those that came are the tokens of plain decoding."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import mirror_trees

    pair, policy = zoo.load(), trees.static((2, 2))
    method = jaxspec.speculative(pair.target, pair.draft, tree=policy)
    (prompt,) = mirror_trees.prompts_of(pair, 1)
    steps, logs = list(mirror_trees.decoded(method, policy, prompt, 16)), mirror_trees.exit_of(pair)
    ranks = [mirror_trees.rank_of(step, logs) for step in steps]
    assert all(0 <= rank < policy.size * 73 for rank in ranks)
    assert np.mean(np.asarray(ranks) < 16) > 0.3
    expected = prompt + jaxspec.generate(jaxspec.autoregressive(pair.target), [prompt], 16).tokens[0]
    for step in steps:
        node, token = step.verdict
        text = [*step.texts[node, : step.ends[node] + 1].tolist(), token]
        assert text == expected[: len(text)]


def test_the_page_of_figures_is_made_from_the_lines(monkeypatch, tmp_path):
    """Recorded runs have a section, others are listed; a command that fails does not change the old lines."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import page

    recorded = {path.stem for path in page.RESULTS.glob("*.jsonl")}
    assert recorded <= page.SECTIONS.keys()
    whole = page.page()
    assert [name for name, section in page.SECTIONS.items() if f"## {section.title}\n" in whole] == [
        name for name in page.SECTIONS if name in recorded
    ]

    printed = {"vocabulary": 73, "characters_per_token": 1.0, "accepted_length": 6.671, "ratio_to_autoregressive": 3.4}
    script = f"import json; print('text'); print(json.dumps({printed}))"
    section = page.SECTIONS["vocabulary"]
    monkeypatch.setitem(page.SECTIONS, "vocabulary", dataclasses.replace(section, command=f'python -c "{script}"'))
    page.record("vocabulary", tmp_path)
    assert "| 73 | 1.00 | 6.67 | 3.40 |" in (shown := page.page(tmp_path))
    assert "- Scaling: `python benchmarks/scaling.py" in shown

    script = "import json, os; print(json.dumps({'card': os.environ['CARD'], 'plan': 'all', 'skipped': 'no time'}))"
    section, command = page.SECTIONS["rounds_gpu"], f'CARD=X1 python -c "{script}"'
    monkeypatch.setitem(page.SECTIONS, "rounds_gpu", dataclasses.replace(section, command=command))
    page.record("rounds_gpu", tmp_path)
    run, lines = page.read("rounds_gpu", tmp_path)
    assert (run["card"], lines[0]["card"]) == ("X1", "X1")
    assert f", X1, {run['cores']} cores, Python" in page.page(tmp_path)
    assert "card" not in page.read("vocabulary", tmp_path)[0]
    shown = page.page(tmp_path)

    broken = dataclasses.replace(page.SECTIONS["vocabulary"], command='python -c "raise SystemExit(1)"')
    monkeypatch.setitem(page.SECTIONS, "vocabulary", broken)
    with pytest.raises(subprocess.CalledProcessError):
        page.record("vocabulary", tmp_path)
    assert page.page(tmp_path) == shown


def test_tables_of_a_gpu(monkeypatch):
    """One table per target and draft, then the cost model's; every plan compared with torch and CUDA graphs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tables

    pair = {"target": "7B", "draft": "0.4M"}
    way = {"window": 7, "budget": 8, "draft_on": "processor"}
    figures = {"ratio_to_autoregressive": 3.37, "tokens_per_second": 950.8, "step_ms": 5.361, "accepted_length": 4.783}
    result = {"kind": "method", **pair, **figures, "reuse_rate": 0.762, "agreeing": 1.0, "rounds": 3}
    plain = {**result, "method": "autoregressive", "window": 0, "budget": 0, "draft_on": None, "floor_ms": 3.817}
    mirrored = {**result, "method": "mirror", **way}
    parts = "prefix", "suffix", "ahead", "rollout", "select", "fallback", "rendezvous", "law", "step"
    predicted = {
        "kind": "law",
        **pair,
        "method": "mirror",
        **way,
        **{f"{name}_ms": 1.0 for name in parts},
        "overlap": None,
    }
    skipped = {"kind": "skipped", **pair, "why": "no time left"}
    small, other, predictions = tables.mirror_gpu(
        [plain, mirrored, skipped, {**plain, "target": "1B"}, predicted, {**skipped, "law": "ahead"}]
    )
    assert "7B, draft 0.4M" in small.title
    assert "3.82 ms" in small.title
    assert [row[:2] for row in small.rows] == [["autoregressive", "–"], ["mirror, 7, 8", "processor"]]
    assert small.rows[1][2:] == ["3.37", "951", "5.36", "4.78", "76.2 %", "100.0 %"]
    assert len(other.rows) == 1
    assert predictions.rows == [["7B, 0.4M; mirror, 7, 8", *["1.00"] * len(parts)]]

    case = {"model": "mlp", "algorithm": "fedavg", "cohort": 10, "plan": "vmap"}
    local = {"ms_per_local_step": 0.01, "torch_ms": 0.11, "floor_ms": 0.02, "ratio_to_torch": 11.0}
    sides = {"contiguous": 1.3, "channels_last": 1.2, "contiguous, graph": 0.11}
    timed = {**case, **local, "ratio_to_floor": 0.5, "torch_sides_ms": sides}
    (table,) = tables.rounds_gpu([timed, {**case, "plan": "map", "skipped": "needs 20.0 GB"}])
    expected = ["mlp, fedavg, 10", "vmap", "0.0100", "0.110", "1.200", "0.020", "11.00", "120.00", "0.50"]
    assert table.rows == [expected]
    assert all(len(row) == len(each.head) for each in (small, other, predictions, table) for row in each.rows)


@pytest.mark.slow
def test_drafts_runs_once_and_writes_its_page(monkeypatch, tmp_path, capsys):
    """One line per method and seed; a second call only reads them; picture and tables are written."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import drafts

    from jaxspec.federated import Distilling, Federation

    federation = Federation(2, 2, 1, 2, learning_rates=(0.1,), evaluate_every=2)
    methods = ("fedspeed", "centralised")
    scope = drafts.Scope(3, 1, 1, (4,), methods, federation, Distilling(2, 1, 16, 8, window=3))
    monkeypatch.setattr(drafts, "DECODING", drafts.DecodingRuns(prompts=1, new_tokens=8, runs=1))
    page = tmp_path / "docs" / "federated_drafts.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    options = drafts.Options(tmp_path / "out", docs=page.parent, json=True)
    drafts.main(scope, options)
    *lines, aim = map(json.loads, capsys.readouterr().out.splitlines())
    runs = [(line["method"], line["seed"]) for line in lines if "method" in line]
    assert runs == [(name, seed) for name in methods for seed in scope.seeds]
    assert {line["samples"] for line in lines if "method" in line} == {2 * 2 * 2}
    assert [line["identical"] for line in lines if "decoded" in line] == [True, True]
    assert set(aim) <= {"held_out", "unseen"}
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert "| fedspeed |" in written
    assert (page.parent / "images" / "federated_drafts.png").stat().st_size > 10_000
    kept = (tmp_path / "out" / "runs.jsonl").read_text()
    drafts.main(scope, options)
    drafts.main(scope, dataclasses.replace(options, page=True))
    assert (tmp_path / "out" / "runs.jsonl").read_text() == kept
    assert page.read_text() == written
