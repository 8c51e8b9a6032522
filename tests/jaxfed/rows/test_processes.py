"""Two real processes over loopback give the results of one."""

import json

import numpy as np
import pytest

import jaxfed
from tests.support import loopback
from tests.support.jaxfed.processes import run


def play_together(out, *arguments):
    """Run both processes to their end; what they printed, and their return codes."""
    port = loopback.free_port()
    return loopback.play_together(
        "tests.support.jaxfed.processes", *([out, port, 2, index, *arguments] for index in (0, 1))
    )


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    processes = play_together(tmp_path / "out.json")
    assert [code for _, code in processes] == [0, 0], processes
    result = json.loads((tmp_path / "out.json").read_text())
    server, history = run()
    for name, expected in server.params.items():
        np.testing.assert_allclose(result["params"][name], expected, atol=1e-6)
    np.testing.assert_allclose(result["history"]["rounds"]["loss"], history.rounds["loss"], atol=1e-6)
    np.testing.assert_allclose(result["history"]["evaluations"]["bias"], history.evaluations["bias"], atol=1e-6)


@pytest.mark.slow
def test_two_processes_resume_together_past_a_damaged_checkpoint(tmp_path):
    whole = play_together(tmp_path / "whole.json")
    play_together(tmp_path / "first.json", tmp_path / "run", 2)
    play_together(tmp_path / "second.json", tmp_path / "run", 4)
    assert jaxfed.checkpoint.steps(tmp_path / "run") == [2, 4]
    victim = next(path for path in (tmp_path / "run" / "00000004").rglob("*.weight/*.0"))
    victim.write_bytes(victim.read_bytes()[:-1])
    processes = play_together(tmp_path / "resumed.json", tmp_path / "run")
    assert [code for _, code in [*whole, *processes]] == [0] * 4, processes
    assert "renamed, continuing" in processes[0][0]
    results = [json.loads((tmp_path / name).read_text()) for name in ("whole.json", "resumed.json")]
    assert results[0]["params"] == results[1]["params"]
    assert results[0]["history"]["rounds"]["loss"] == results[1]["history"]["rounds"]["loss"]
