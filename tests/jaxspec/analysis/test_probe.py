"""The probe by hand, and against the reuse of decoding with all branches."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec import __main__ as command_line
from jaxspec.analysis import ExitProbe, _exit_reading, plots, probe, proposals, step_ends
from jaxspec.analysis.cost import ProgramTimes
from jaxspec.federated import continued
from jaxspec.text.prompts import Continued, token_rows
from jaxspec.training import Schedule, fit_lens, hidden_states
from jaxspec.verify.exits import LogitLens
from tests.support.jaxspec import models, pairs

KAPPAS = (1, 2, 4, 8)
NEW = 48


@pytest.fixture(scope="module")
def text():
    """Prompts of three tokens and the target's own continuation."""
    prompts = np.asarray([(prompt * 3)[:3] for prompt in pairs.PROMPTS], np.int32)
    new = jaxspec.generate(jaxspec.autoregressive(models.target()), prompts.tolist(), NEW).tokens
    return np.concatenate([prompts, np.asarray(new, np.int32)], axis=1)


@pytest.fixture(scope="module")
def probes(text):
    return probe(models.target(), models.draft(), text, 3, window=3, num_candidates=KAPPAS)


def test_ends_of_steps_by_hand():
    agrees = np.asarray([[True, True, False, True, True, True, True, False, False, True]])
    assert step_ends(agrees, 3) == [(0, 2, 2), (0, 6, 3)]
    assert step_ends(~agrees, 2) == [(0, 0, 0), (0, 1, 0), (0, 3, 1), (0, 4, 0), (0, 5, 0), (0, 6, 0), (0, 9, 2)]


def test_the_last_layer_is_the_oracle(probes):
    oracle = probes[-1]
    assert oracle.contained == oracle.at_correction == oracle.foreseen == dict.fromkeys(KAPPAS, 1.0)


def test_shares_grow_with_candidates_and_layers(probes):
    for row in probes:
        for shares in row[1:]:
            assert sorted(shares.values()) == [shares[kappa] for kappa in KAPPAS]
    assert probes[0].contained[1] < probes[-1].contained[1]


def test_mass_is_a_probability(probes):
    for row in probes:
        assert all(0 < mass <= 1 + 1e-6 for mass in row.mass.values())
    assert probes[-1].mass[8] > 0.9


@pytest.mark.parametrize(("layer", "kappa"), [(1, 1), (2, 2), (3, 4)])
def test_fallbacks_are_predicted(probes, text, layer, kappa):
    """FF = 1 − Ω′ equals that of decoding with all branches, within sampling error."""
    method = models.mirror(3, kappa, layer)
    stats = jaxspec.generate(method, text[:, :3].tolist(), NEW).stats
    expected = next(row for row in probes if row.layer == layer).foreseen[kappa]
    error = 3 * np.sqrt(max(expected * (1 - expected), 0.01) / stats.needed)
    assert stats.reuse_rate == pytest.approx(expected, abs=error)


def test_the_exit_with_the_shortest_step_is_proposed(probes):
    """Late exits predict more, early ones leave more of the target's pass to overlap."""
    times = ProgramTimes(prefix=1.0, suffix=3.0, rollout=1.5, fallback=1.0, select=0.1)
    best, *others = proposals(probes, {1: times, 4: replace(times, rollout=2.9)}, 4)
    assert len(others) == 7
    assert all(best.step <= other.step for other in others)
    for layer, kappa, step in (best, *others):
        rate = 1 - next(row for row in probes if row.layer == layer).foreseen[kappa]
        rollout = {1: 1.5, 4: 2.9}[kappa]
        assert step == pytest.approx(max(4.0, layer + rollout) + 0.1 + rate)


@pytest.mark.slow
def test_a_fitted_lens_predicts_better_than_the_logit_lens(text):
    corpus = text[:, 3:].reshape(-1)
    schedule = Schedule(steps=150, batch_size=8, sequence_length=32, learning_rate=2e-2, warmup=5)
    for layer in (1, 2):
        lens = fit_lens(models.target(), layer, corpus, rank=8, schedule=schedule, progress=False)
        plain, fitted = (
            probe(models.target(), models.draft(), text, 3, window=3, layers=[layer], num_candidates=KAPPAS, exit=head)[
                0
            ]
            for head in (None, lens)
        )
        assert fitted.mass[1] > plain.mass[1]
        assert sum(fitted.contained.values()) >= sum(plain.contained.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exit_layer": 0}, "expected 1 <= exit_layer <= 4 and rank >= 1, got 0 and 32"),
        ({"exit_layer": 2, "rank": 0}, "got 2 and 0"),
        ({"exit_layer": 2}, "expected more than 257 tokens to fit a lens, got 100"),
    ],
)
def test_invalid_lens_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_lens(models.target(), corpus=np.zeros(100, np.int32), **arguments)


@pytest.mark.slow
def test_command(small_pair, tmp_path, capsys):
    picture = tmp_path / "new" / "probe.png"
    short = ["--pair", str(small_pair), "--count", "3", "--new-tokens", "16"]
    options = [*short, "--num-candidates", "1", "8", "--plot", str(picture)]
    command_line.main(["probe", *options, "--propose", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["layer"] for row in printed["layers"]] == [1, 2]
    assert printed["layers"][-1]["foreseen"] == {"1": 1.0, "8": 1.0}
    assert printed["proposals"][0]["step"] > 0
    assert picture.stat().st_size > 0
    command_line.main(["probe", *options])
    assert "picture in" in capsys.readouterr().out


def test_positions_after_the_end_of_a_text_do_not_count(text):
    sizes = (text.shape[1], 20)
    ended = np.where(np.arange(text.shape[1]) < np.asarray(sizes)[:, None], text[:2], -1)
    options = {"layers": [2], "num_candidates": (2,)}
    (whole,) = probe(models.target(), None, ended, 3, **options)
    rows = [row[None, :size] for row, size in zip(text, sizes, strict=False)]
    parts = [probe(models.target(), None, row, 3, **options)[0] for row in rows]
    weights = np.asarray(sizes) - 3
    assert whole.contained[2] == pytest.approx(np.average([part.contained[2] for part in parts], weights=weights))
    assert whole.mass[2] == pytest.approx(np.average([part.mass[2] for part in parts], weights=weights), rel=1e-5)
    (drafted,) = probe(models.target(), models.draft(), ended, 3, window=3, **options)
    assert (drafted.contained, drafted.mass) == (whole.contained, whole.mass)
    assert whole.at_correction == whole.foreseen == {}
    assert drafted.foreseen.keys() == {2}


def by_hand(texts, window, kappas, head=LogitLens()):
    """All figures from whole logits, by sorting the vocabulary at every position."""
    target, draft = models.target(), models.draft()
    found = {layer: {name: {kappa: [] for kappa in kappas} for name in ExitProbe._fields[1:]} for layer in (1, 2, 3, 4)}
    for row, start in zip(texts.tokens, texts.starts, strict=True):
        text = row[row >= 0]
        *early, final = hidden_states(target.network, target.params, text[None], (1, 2, 3, 4))
        read = lambda x, start=start: np.asarray(head(target.network, target.params, x))[:, 0, start - 1 : -1]  # noqa: E731
        choice, shares = read(final).argmax(0), np.asarray(jax.nn.softmax(read(final), axis=0))
        small = draft.network.logits(draft.params, hidden_states(draft.network, draft.params, text[None])[-1])
        drafted = np.asarray(small).argmax(0)[0, start - 1 : -1]
        ends = step_ends([drafted == choice], window)
        for layer, x in zip((1, 2, 3, 4), early, strict=True):
            order = np.argsort(-read(x), axis=0, kind="stable")
            rest = [[token for token in column if token != no] for column, no in zip(order.T, drafted, strict=True)]
            for kappa in kappas:
                figures = found[layer]
                figures["contained"][kappa] += [
                    c in column for c, column in zip(choice, order.T[:, :kappa], strict=True)
                ]
                figures["mass"][kappa] += np.take_along_axis(shares, order[:kappa], axis=0).sum(0).tolist()
                for _, at, accepted in ends:
                    own = order[:kappa, at] if accepted == window else rest[at][:kappa]
                    figures["foreseen"][kappa].append(choice[at] in own)
                    if accepted < window:
                        figures["at_correction"][kappa].append(choice[at] in own)
    mean = lambda lists: {kappa: float(np.mean(values)) for kappa, values in lists.items()}  # noqa: E731
    return [ExitProbe(layer, *map(mean, figures.values())) for layer, figures in found.items()]


@pytest.mark.parametrize("most", [2**24, 5 * models.VOCAB])
def test_prompts_of_unequal_length_are_read_behind_their_ends(text, most, monkeypatch):
    """A few logits at a time give what whole sorted vocabularies give."""
    monkeypatch.setattr(_exit_reading, "MAX_LOGITS", most)
    ended = np.where(np.arange(text.shape[1]) < np.asarray([[text.shape[1]], [30]]), text[:2], -1)
    rows = Continued(np.pad(ended, ((0, 0), (0, 6)), constant_values=-1), np.asarray([9, 3]))
    found = probe(models.target(), models.draft(), rows, window=3, num_candidates=KAPPAS)
    for row, other in zip(found, by_hand(rows, 3, KAPPAS), strict=True):
        for name in ("contained", "at_correction", "foreseen"):
            assert getattr(row, name) == pytest.approx(getattr(other, name), abs=1e-9)
        assert row.mass == pytest.approx(other.mass, rel=1e-5)


def test_the_picture_without_a_draft_has_no_figure_of_decoding(probes):
    """And with one κ no line twice."""
    alone = [row._replace(at_correction={}, foreseen={}) for row in probes]
    few = [row._replace(contained={4: row.contained[4]}, mass={4: row.mass[4]}) for row in alone]
    labels = [[line.get_label() for line in plots.probe(rows).axes[0].lines] for rows in (probes, alone, few)]
    assert [len(each) for each in labels] == [5, 3, 2]
    assert labels[2][0] == "target's token among the exit's first 4"


@pytest.mark.slow
def test_the_command_reads_a_published_target(tmp_path, capsys):
    """With its own tokenizer and stop tokens, texts from a file, and no draft."""
    where = Path(__file__).parents[2] / "data" / "stories260K" / "stories260K.bin"
    tale = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    (tmp_path / "tale.txt").write_text(tale * 3)
    options = ["--target", str(where), "--texts", str(tmp_path / "tale.txt"), "--count", "2", "--new-tokens", "24"]
    options += ["--num-candidates", "4", "--plot", str(tmp_path / "picture.png")]
    command_line.main(["probe", *options, "--json"])
    layers = json.loads(capsys.readouterr().out.splitlines()[-1])["layers"]
    model = jaxspec.load_llama2c(where, where.parent / "tok512.model")
    rows, _ = token_rows(model.text, [tale * 3], 32, 2)
    text = continued(model, rows, 24).tokens
    expected = probe(model, None, text, 32, num_candidates=(4,))
    assert [row["contained"]["4"] for row in layers] == [row.contained[4] for row in expected]
    assert layers[-1]["contained"]["4"] == 1.0
    assert layers[-1]["foreseen"] == {}
    command_line.main(["probe", *options])
    assert "–" in capsys.readouterr().out


def test_bad_input(text):
    with pytest.raises(ValueError, match=r"expected window >= 1 and num_candidates from 1 to 11 .*, got 3 and \(12,\)"):
        probe(models.target(), models.draft(), text, 3, window=3, num_candidates=(12,))
    with pytest.raises(ValueError, match="expected texts of more than 7 tokens, got 2; use other prompts"):
        probe(models.target(), models.draft(), np.where(np.arange(text.shape[1]) < 5, text, -1), 3)
    with pytest.raises(ValueError, match=r"expected ascending layers from 1 to 4, got \(5,\)"):
        probe(models.target(), models.draft(), text, 3, layers=[5])
    with pytest.raises(ValueError, match="expected more than 7 tokens after the prompts, got 2"):
        probe(models.target(), models.draft(), text, text.shape[1] - 2)
