"""Times from bytes and operations, by hand; gains against the cost model's own policies; the command."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec.__main__ import main
from jaxspec.analysis.roofline import (
    Machine,
    PassPart,
    PredictedPair,
    Workload,
    pass_seconds,
    predicted_gains,
    predicted_times,
)
from jaxspec.devices.chips import CHIPS, Chip, chip_named
from jaxspec.models.config import DecoderConfig, Ends, Experts

CONFIG = DecoderConfig(1000, 64, 4, 4, 2, 16, 256, ends=Ends(tied=False))
#: Entries of the head.
HEAD = 1000 * 64
SLOW = Machine(Chip(1e12, 1e6, 1e12), 1, 1.0, 0.0, 0.0)
PAIR = PredictedPair(CONFIG, replace(CONFIG, num_layers=1, width=32), SLOW, SLOW)


def entries(config):
    """Entries of a layer, counted in parameters that were made."""
    params = jaxspec.decoder(config, jax.random.key(0)).params["layers"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)) / config.num_layers


def test_a_pass_reads_matrices_and_rows():
    """Bandwidth bound: bytes of two layers, of the head, and of 100 rows of keys and values."""
    bytes_read = 2 * (2 * entries(CONFIG) + HEAD + 2 * 2 * 2 * 16 * 100)
    found = pass_seconds(CONFIG, PassPart(2), 1, SLOW, Workload(rows=100))
    assert found == pytest.approx(bytes_read / 1e6)
    without = pass_seconds(CONFIG, PassPart(2, head=False), 1, SLOW, Workload(rows=100))
    assert found - without == pytest.approx(2 * HEAD / 1e6)


def test_many_tokens_are_bound_by_operations():
    fast = SLOW._replace(chip=Chip(1e12, 1e15, 1e6))
    products = 2 * 50 * (4 * entries(CONFIG) + HEAD) + 4 * 50 * 100 * 4 * 4 * 16
    assert pass_seconds(CONFIG, PassPart(4), 50, fast, Workload(rows=100)) == pytest.approx(products / 1e6)


def test_chips_share_the_work_and_wait_twice_a_layer():
    one, four = SLOW._replace(launch=1.0), SLOW._replace(number=4, launch=1.0, latency=0.5)
    alone, divided = (pass_seconds(CONFIG, PassPart(3), 1, on) for on in (one, four))
    assert divided - 1.0 - 2 * 3 * 0.5 == pytest.approx((alone - 1.0) / 4)


def test_few_tokens_read_few_experts():
    mixture = replace(CONFIG, experts=Experts(8, 2, 64))
    one, many = (pass_seconds(mixture, PassPart(4, head=False), tokens, SLOW) for tokens in (1, 100))
    rows = 2 * 2 * 4 * 2 * 16 * 1024 / 1e6
    assert many - rows == pytest.approx(2 * 4 * entries(mixture) / 1e6, rel=1e-6)
    expert_share = 8 * 3 * 64 * 64 / entries(mixture)
    assert (one - rows) / (many - rows) == pytest.approx(1 - expert_share * 0.75, rel=1e-3)


def test_layers_that_are_none():
    with pytest.raises(ValueError, match="expected 0 to 4 layers, got 5"):
        pass_seconds(CONFIG, PassPart(5), 1, SLOW)


def test_weights_that_do_not_fit():
    small = SLOW._replace(chip=Chip(1e5, 1e6, 1e12))
    with pytest.raises(
        ValueError, match=r"expected a draft that fits into 1 chips of 0\.0001 GB, got 0\.0 GB of weights"
    ):
        predicted_times(PAIR._replace(draft_on=small))


def test_prefix_and_suffix_make_the_whole_pass():
    times = predicted_times(PAIR, exit_share=0.25)
    head = 2 * HEAD / 1e6
    assert times.prefix + times.suffix == pytest.approx(times.whole + head)
    assert times.plain < times.whole * 1.001
    assert times.draft < times.rollout * 1.001
    assert times.prefix < times.suffix


def test_gains_without_a_right_token_are_below_one():
    gains = predicted_gains(PAIR, 0.0, 0.0)
    assert max(gains.same_placement.values()) <= 1.0


def test_foresight_helps_those_that_use_it():
    low, high = (predicted_gains(PAIR, 0.8, share).same_placement for share in (0.1, 0.9))
    assert low["speculative"] == high["speculative"]
    assert low["pearl"] == high["pearl"]
    for name in ("saguaro", "mirror", "hybrid"):
        assert high[name] > low[name]


def test_equal_chips_are_compared_where_they_are_of_one_kind():
    gains = predicted_gains(PAIR, 0.8, 0.8)
    assert gains.equal_chips is not None
    ratios = [gains.equal_chips[name] / gain for name, gain in gains.same_placement.items()]
    np.testing.assert_allclose(ratios, ratios[0])
    assert ratios[0] < 1
    other = predicted_gains(PAIR._replace(draft_on=SLOW._replace(chip=CHIPS["L4"])), 0.8, 0.8)
    assert other.equal_chips is other.all_devices is None


@pytest.mark.parametrize(("rate", "foreseen"), [(1.1, 0.5), (0.5, -0.1)])
def test_probabilities_that_are_none(rate, foreseen):
    with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\]"):
        predicted_gains(PAIR, rate, foreseen)


def test_the_command(tmp_path, capsys):
    jaxspec.save_huggingface(jaxspec.decoder(CONFIG, jax.random.key(0)), tmp_path)
    where = ["predict", "--target", str(tmp_path), "--draft", str(tmp_path)]
    main([*where, "--chips", "v6e", "--rate", "0.7", "0.9", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["gains"]) == {"0.7", "0.9"}
    assert result["gains"]["0.9"]["same_placement"]["mirror"] > result["gains"]["0.7"]["same_placement"]["mirror"]
    main(where)
    said = capsys.readouterr().out
    assert "Predicted, not measured" in said
    assert "speculative, all chips" in said
    with pytest.raises(SystemExit, match="expected a chip out of v4, v5e"):
        main([*where, "--chips", "A100"])
    assert chip_named("H200").bandwidth == 4.8e12
