"""The report on federated draft heads at toy size: its lines, equal samples, and lines kept."""

import json
from pathlib import Path

import pytest

import jaxspec
from tests.support.jaxspec import small

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_line_for_each_method(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import federated_heads

    jaxspec.save_huggingface(small.pair().target, tmp_path / "t")
    sizes = "--clients", 3, "--rounds", 1, "--cohort", 2, "--steps", 1, "--batch", 2, "--windows", 2, "--rank", 2
    about = "--target", tmp_path / "t", "--kind", "medusa", "--out", tmp_path / "out", "--window", 2, "--json"
    monkeypatch.setattr(federated_heads, "HELD_OUT", 2)
    options = federated_heads.parsed([str(each) for each in (*about, *sizes, "--tokens", 12, 6)])
    rows = list(federated_heads.lines(options))
    assert [row["method"] for row in rows] == ["fedspeed", "fedavg", "centralised"]
    assert {row["samples"] for row in rows} == {4}
    assert {row["metric"] for row in rows} == {"accepted_tokens"}
    sent = {row["method"]: row["bytes_a_client_a_round"] for row in rows}
    assert sent["fedspeed"] == 2 * sent["fedavg"]
    assert sent["centralised"] is None
    assert all(0 <= value <= 2 for row in rows for value in row["unseen_before_after"])
    assert len({row["unseen_before_after"][0] for row in rows}) == 1
    monkeypatch.setattr(federated_heads, "setup_of", None)
    assert list(federated_heads.lines(options)) == json.loads(json.dumps(rows))


def test_more_clients_than_there_are_roles(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import federated_heads

    with pytest.raises(ValueError, match="expected at most .* clients, got 5000"):
        federated_heads.roles_of(5000)
    roles = federated_heads.roles_of(50)
    ids = [role.id for part in roles.values() for role in part]
    assert len(set(ids)) == len(ids) == 50 + 4 + 10 + 48
