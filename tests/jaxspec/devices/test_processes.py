"""Two real processes over loopback, the target in one and the draft in the other, decode what one process does."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.devices.processes import abstract, only_local, shapes
from tests.support import loopback
from tests.support.jaxspec.processes import CROSSINGS, SETTINGS, STARTS, decode, plain, traced

#: Devices of both processes, and what they decode. Starting is what takes time: many settings at once.
RUNS = {
    "1+1": (1, 1, list(SETTINGS)),
    "2+1": (2, 1, ["mirror", "hybrid"]),
    "1+2": (1, 2, ["saguaro sampled", "mirror"]),
}


#: What JAX prints when it ends a process whose coordinator, process 0, is gone.
ENDED_BY_JAX = "the JAX distributed service detected fatal errors"


def run_together(folder, devices, settings, *arguments):
    """What both processes printed, and their return codes."""
    port = loopback.free_port()
    arguments_of = ([folder, port, index, size, ",".join(settings), *arguments] for index, size in enumerate(devices))
    return loopback.play_together("tests.support.jaxspec.processes", *arguments_of)


def play_together(folder, devices, settings):
    """The results of both processes."""
    printed = run_together(folder, devices, settings)
    assert [code for _, code in printed] == [0, 0], printed
    return [json.loads((folder / f"{index}.json").read_text()) for index in (0, 1)]


@pytest.fixture(scope="module", params=RUNS)
def results(request, tmp_path_factory):
    *devices, settings = RUNS[request.param]
    return play_together(tmp_path_factory.mktemp("processes"), devices, settings)


@pytest.mark.slow
def test_tokens_are_those_of_plain_decoding(results):
    for name in SETTINGS.keys() & results[0].keys() - {"ratio"}:
        assert results[0][name]["tokens"] == plain(name), name
    assert results[0]["plain"] == results[1]["plain"] == plain("mirror")


@pytest.mark.slow
def test_both_processes_give_the_same_results(results):
    """Tokens, log-probabilities to the last bit, counts, and the number of transfers."""
    for name in SETTINGS.keys() & results[0].keys():
        assert results[0][name] == results[1][name], name
    assert results[0]["own weights alone"] == results[1]["own weights alone"]


@pytest.mark.slow
def test_one_process_gives_the_same_results(results):
    """The same tokens after the same steps, with as many windows reused."""
    for name in {"mirror", "hybrid", "ratio"} & results[0].keys():
        expected = decode(name)
        assert {key: results[0][name][key] for key in ("tokens", "finish", "counts", "steps")} == {
            key: expected[key] for key in ("tokens", "finish", "counts", "steps")
        }
        np.testing.assert_allclose(results[0][name]["log_probabilities"], expected["log_probabilities"], atol=1e-4)


@pytest.mark.slow
def test_a_step_has_three_transfers_or_two(results):
    """Window, verdict and, with an exit, the message; and one transfer for the first window."""
    for name in SETTINGS.keys() & results[0].keys():
        assert results[0][name]["crossed"] == STARTS[name] + results[0][name]["steps"] * CROSSINGS[name], name


@pytest.mark.slow
def test_a_process_needs_the_weights_of_its_own_side_alone(results):
    assert results[0]["own weights alone"]["tokens"] == plain("mirror")


@pytest.mark.slow
def test_a_timeline_holds_the_own_programs_and_what_arrives(results):
    names, outcomes = ([side["traced"][key] for side in results] for key in ("names", "outcomes"))
    assert names[0] == ["draft select", "target prefix", "target suffix"]
    assert names[1] == ["draft rollout", "draft select", "target suffix"]
    assert outcomes[0] == outcomes[1] == traced()["outcomes"]


@pytest.mark.slow
def test_invalid_meshes_are_rejected(results):
    for index, side in enumerate(results):
        mixed, foreign, *others, timed = side["refused"]
        assert "expected every mesh within one process, got one over processes [0, 1]" in mixed
        assert f"expected a mesh of this process ({index}), got meshes of [{1 - index}]" in foreign
        assert others == [foreign, foreign]
        assert "expected both meshes in this process" in timed


@pytest.mark.slow
def test_different_arguments_are_rejected_in_both(results):
    """Here other stop tokens; the channel works afterwards."""
    assert all("expected the same call in both processes" in side["apart"] for side in results)


@pytest.mark.slow
def test_a_transfer_is_timed(results):
    """Both processes time the same way there and back."""
    assert all(0 < side["rendezvous"] < 10 for side in results)


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1], ids=["target's", "draft's"])
def test_a_process_that_ends_leaves_the_other_an_error(tmp_path, dying):
    """Its connection closes, and the next transfer raises, without waiting for a heartbeat.

    JAX ends a process that loses its coordinator, which is the target's, and may do so before the transfer raises.
    """
    printed, code = run_together(tmp_path, (1, 1), ["mirror"], dying)[1 - dying]
    if dying == 0 and code:
        assert ENDED_BY_JAX in printed
        return
    assert code == 0, printed
    alive = json.loads((tmp_path / f"{1 - dying}.json").read_text())
    assert re.search("Connection (closed|reset) by peer|Broken pipe", alive["error"])
    assert alive["seconds"] < 60


def test_an_abstract_program_is_traced_once_for_each_kind_of_arguments():
    traces = []

    def program(scale, x):
        traces.append(x.shape)
        return {"sum": scale * jnp.sum(x, axis=0), "x": x}

    outline = abstract(program, jax.ShapeDtypeStruct((), jnp.float32))
    for size in (3, 3, 4, 3):
        leaves = outline(jax.ShapeDtypeStruct((2, size), jnp.float32))
        assert {name: leaf.shape for name, leaf in leaves.items()} == {"sum": (size,), "x": (2, size)}
    assert traces == [(2, 3), (2, 4)]
    assert outline(leaves["x"]) == leaves


def test_a_watch_sees_local_programs_only():
    calls, array = [], jnp.ones(3)
    watch = only_local(lambda *call: calls.append(call))
    for name, outputs in (("here", (array, None)), ("elsewhere", shapes((array, None))), ("half", (array, shapes(1)))):
        watch("target", name, outputs)
    assert calls == [("target", "here", (array, None))]
