"""The decision for fixed times, and one measurement."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import jaxspec
from jaxspec import __main__ as command_line
from jaxspec.analysis import probe
from jaxspec.analysis._grid import PLAIN, Grid
from jaxspec.analysis._predict import Tuned, predict, ranked
from jaxspec.analysis._tune import tune
from jaxspec.analysis.timing import DraftTimes, Primitives, TargetPass
from jaxspec.drafts import Draft, Drafter
from jaxspec.methods import DecodeSpec, candidates
from jaxspec.models.config import Tracks
from tests.jaxspec.analysis.test_replay import recorded
from tests.support.jaxspec import models, pairs
from tests.support.jaxspec import reading_rows as reading

#: Seconds: a pass over a window is a little longer than one over a token; exit and message take a tenth of a layer.
MEASURED = Primitives(
    plain=10.0,
    passes={1: TargetPass(10.5, 5.5, 5.5, 0.5), 3: TargetPass(11.0, 5.75, 5.75, 0.5)},
    exit_layer=2,
    num_layers=4,
    drafting=DraftTimes(0.1, {1: 1.0, 5: 2.0}, {1: 0.1, 5: 0.3}),
    beside=DraftTimes(0.1, {1: 1.5}),
    rendezvous=0.2,
)
GRID = Grid(windows=(1, 3), num_candidates=(2, 4), budgets=(2, None), exit_layers=(1, 2))


@cache
def recording(name):
    prompts = [prompt[:3] for prompt in pairs.PROMPTS[:4]]
    return recorded(models.target(), getattr(models, name)(), prompts, 32, (1, 2))


@pytest.mark.parametrize(
    ("policy", "layer", "expected"),
    [
        (candidates.none(), 2, {"suffix": 11.0, "fallback": 0.1 + 3 * 1.0}),
        (candidates.pearl(), 2, {"suffix": 11.0, "ahead": 0.1 + 1.0 + 3 * 1.0, "select": 0.1, "fallback": 3.0}),
        (candidates.mirror(3), 2, {"prefix": 5.75, "suffix": 5.75, "rollout": 0.1 + 3 * 1.5, "select": 0.2}),
        (candidates.mirror(3), 1, {"prefix": 5.75 - 2.625, "suffix": 5.75 + 2.625}),
        (candidates.mirror(3), 4, {"prefix": 5.75 + 5.25, "suffix": 0.5}),
        (candidates.hybrid(2, 1), 2, {"ahead": 0.1 + 1.0 + 3 * 1.25, "rollout": 0.1 + 3 * 1.0, "select": 0.2}),
        (candidates.mirror(), 2, {"rollout": 0.1 + 3 * 2.0, "select": 0.3}),
    ],
)
def test_a_step_is_composed_of_programs(policy, layer, expected):
    times = vars(MEASURED.programs(3, policy, 4, layer))
    assert times["rendezvous"] == 0.2
    assert {name: times[name] for name in expected} == pytest.approx(expected)


def test_speculative_decoding_drafts_on_the_target_s_mesh():
    row = predict(MEASURED, DecodeSpec(3), 2.0, 1.0)
    assert row.step == pytest.approx(11.0 + 3 * 1.5)
    assert row.tokens_per_second == pytest.approx(3.0 / 15.5)
    assert predict(MEASURED, PLAIN, 0.0, 0.0).tokens_per_second == pytest.approx(0.1)


def test_predictions_are_monotonic():
    """Fewer fallbacks, more accepted tokens, more overlap and smaller batches are never worse."""
    hybrid = DecodeSpec(3, candidates.hybrid(2, 2), 4, 2)
    speeds = [predict(MEASURED, hybrid, 1.5, rate).tokens_per_second for rate in (0.0, 0.3, 1.0)]
    assert speeds == sorted(speeds, reverse=True)
    speeds = [predict(MEASURED, hybrid, length, 0.3).tokens_per_second for length in (0.0, 1.0, 3.0)]
    assert speeds == sorted(speeds)
    steps = [predict(replace(MEASURED, overlap=share), hybrid, 1.5, 0.3).step for share in (0.0, 0.5, 1.0)]
    assert steps == sorted(steps, reverse=True)
    steps = [predict(replace(MEASURED, batch=batch), hybrid, 1.5, 0.3).step for batch in (1, 4, 16)]
    assert steps == sorted(steps)
    assert min(steps) >= MEASURED.passes[3].prefix + MEASURED.passes[3].suffix


def builder(draft):
    return lambda spec: spec.build(models.target(), draft, placement=models.meshes())


def test_a_good_draft_is_used():
    rows = ranked(MEASURED, recording("draft"), GRID.specs((1, 2)))
    speeds = [row.tokens_per_second for row in rows]
    assert speeds == sorted(speeds, reverse=True)
    assert rows[0].spec.window > 0
    tuned = Tuned(rows, MEASURED, builder(models.draft()))
    assert tuned.over(tuned.chosen, "plain decoding") > 1
    assert str(tuned).startswith(str(tuned.chosen.spec))


def test_plain_decoding_is_selected_where_it_is_faster():
    rows = ranked(MEASURED, recording("stranger"), GRID.specs((1, 2)))
    tuned = Tuned(rows, MEASURED, builder(models.stranger()))
    assert tuned.chosen.spec == PLAIN
    assert str(tuned).startswith(f"Plain decoding is faster: of {len(rows) - 1} other settings the best (")
    assert tuned.method.window == 0
    assert jaxspec.generate(tuned.method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()


def test_the_grid():
    specs = GRID.specs(GRID.layers(2, models.TARGET))
    assert len(set(specs)) == len(specs)
    assert {spec.window for spec in specs} == {0, 1, 3}
    assert {spec.label for spec in specs} == {
        "plain decoding", "speculative", "none", "pearl", "saguaro(2)", "ahead(2)",
        "mirror(2)", "mirror(all)", "hybrid(2, 2)",
    }  # fmt: skip
    deep = replace(models.TARGET, num_layers=8)
    assert Grid().layers(3, deep) == (2, 3, 4, 6)
    assert Grid().layers(4, replace(deep, tracks=Tracks(2))) == (4,)
    assert "mirror(all)" not in {s.label for s in Grid(windows=(127,), num_candidates=(8,)).specs((2,))}
    assert Grid().branches == (1, 4, 16, 64)
    assert Grid(budgets=(4,)).branches == (1, 4, 8)


@pytest.mark.slow
def test_tune_measures_once():
    """Tokens are those of plain decoding for every setting, and every program was timed."""
    where, grid = models.meshes(2, 1), Grid((1, 3), (2,), (2, None), (2,))
    tuned = tune(models.target(), models.draft(), models.PROMPTS, grid=grid, placement=where, new_tokens=24, batch=2)
    assert jaxspec.generate(tuned.method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()
    for row in tuned.rows:
        method = tuned.build(row.spec)
        assert jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()
    measured = tuned.primitives
    assert measured.batch == 2
    assert set(measured.passes) == {1, 3}
    assert all(seconds > 0 for passes in measured.passes.values() for seconds in passes)
    assert set(measured.drafting.passes) == {1, 4, 8}
    assert measured.plain > 0 < measured.rendezvous
    assert 0 <= measured.overlap <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eagle3 early", "eagle", "medusa"])
def test_a_draft_that_reads_hidden_states(kind):
    """Windows end at the last head; heads have branches only where these start from the target's hidden states."""
    target, draft, grid = models.target(), reading.draft(kind), Grid((2, 9), (2,), (2,), (2,))
    grid = grid if kind == "medusa" else replace(grid, windows=(2,))
    tuned = tune(target, draft, models.PROMPTS, grid=grid, placement=models.meshes(), new_tokens=14)
    assert jaxspec.generate(tuned.method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()
    labels = {row.spec.label for row in tuned.rows}
    assert ("pearl" in labels) == ("mirror(2)" in labels) == (kind != "medusa")
    assert set(tuned.primitives.passes) == ({2, 4} if kind == "medusa" else {2})
    assert all(row.step > 0 for row in tuned.rows)


def test_a_draft_that_cannot_be_replayed_is_refused():
    with pytest.raises(ValueError, match=r"expected a language model, a draft without a model, or one .*got Drafter"):
        tune(models.target(), Draft(Drafter()), models.PROMPTS)
    with pytest.raises(ValueError, match=r"expected a language model as a draft to probe with, got .*FeatureDrafter"):
        probe(models.target(), reading.draft("eagle"), np.zeros((1, 20), np.int32), 4)


def test_bad_input():
    pair = models.target(), models.draft()
    with pytest.raises(ValueError, match="expected windows and candidates, each number >= 1, got Grid"):
        Grid(windows=())
    with pytest.raises(ValueError, match="each number >= 1"):
        Grid(budgets=(0,))
    with pytest.raises(ValueError, match="expected new_tokens > 7, the largest window, got 7"):
        tune(*pair, models.PROMPTS, new_tokens=7)
    with pytest.raises(ValueError, match="expected 1 <= exit_layer <= 4"):
        tune(*pair, models.PROMPTS, grid=Grid(exit_layers=(5,)))


@pytest.mark.slow
def test_command(small_pair, capsys):
    options = ["--windows", "3", "--num-candidates", "4", "--budgets", "4", "--exit-layers", "1"]
    command = ["tune", str(small_pair), *options, "--count", "2", "--new-tokens", "24"]
    command_line.main([*command, "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["chosen"] == printed["rows"][0]
    assert printed["rows"][0]["tokens_per_second"] == max(row["tokens_per_second"] for row in printed["rows"])
    assert {"plain", "passes", "drafting", "overlap"} <= set(printed["primitives"])
    command_line.main(command)
    assert "the best of each policy" in capsys.readouterr().out
