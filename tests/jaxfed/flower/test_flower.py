"""Real clients through Flower: records, rows, rounds over a grid in this process, and a deployment of processes."""

import contextlib
import dataclasses
import importlib
import re
import sys
import warnings
import zlib

import chex
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  its types by name
import numpy as np
import pytest

import jaxfed
from jaxfed import checkpoint
from jaxfed.messages._uplink import Coding
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

pytestmark = pytest.mark.peers("flwr")
if importlib.util.find_spec("flwr"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of click, when flwr imports it
        from flwr.app import Array, ArrayRecord, ConfigRecord
        from flwr.common import serde
        from flwr.proto.recorddict_pb2 import ArrayRecord as ArrayRecordBytes

        from jaxfed import flower
        from jaxfed.flower import _codec as codec
        from jaxfed.flower._instruction import Instruction, Member, check_same
        from jaxfed.flower._rows import NEVER, Rows
        from jaxfed.flower._training import server_like, update_like
        from tests.support.jaxfed.loopback_grid import LoopbackGrid
        from tests.support.jaxfed.superlink import APP, SuperLink

PROBLEM = problems.make_problem(21, np.float32)
CLIENTS = PROBLEM.clients[:3]
SAMPLE = {"x": jax.ShapeDtypeStruct((problems.FEATURES,), np.float32), "y": jax.ShapeDtypeStruct((), np.int32)}


@pytest.mark.parametrize("name", jaxfed.algorithms.registry)
def test_trees_of_every_algorithm_cross(name):
    """What is broadcast, what is sent and what a new client holds: structure and numbers, to the bit."""
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn, relaxation=0.1)
    server, row = algorithm.init(PROBLEM.params, len(CLIENTS)), algorithm.init_client(PROBLEM.params)
    draw = np.random.default_rng(0)
    shapes = update_like(algorithm, server, SAMPLE)
    update = jax.tree.map(lambda leaf: np.asarray(draw.normal(size=leaf.shape), leaf.dtype), shapes)
    for sent, like in [(server, server_like(algorithm, PROBLEM.params)), (update, shapes), (row, row)]:
        for zeros in (True, False):
            unpacked = flower.unpack(flower.pack(sent, zeros=zeros), like, zeros=zeros)
            chex.assert_trees_all_equal(unpacked, jax.tree.map(np.asarray, sent), strict=True)
    assert {"last_params/bias", "last_params/weight"} <= set(flower.pack(row, zeros=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "int8", "bool"])
def test_dtypes_cross(dtype):
    sent = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones((), dtype), "c": np.ones((0, 2), dtype)}
    chex.assert_trees_all_equal(flower.unpack(flower.pack(sent), sent), sent, strict=True)


def over_the_wire(record):
    """Return the record after Flower wrote and read it, and the bytes."""
    data = serde.array_record_to_proto(record).SerializeToString()
    return serde.array_record_from_proto(ArrayRecordBytes.FromString(data)), data


SHORTER = {
    "quantise": (jaxfed.compression.quantise(8), 1.0),
    "four bits": (jaxfed.compression.quantise(4), 1.0),
    "top_k": (jaxfed.compression.top_k(0.01, feedback=False), 1.5),
    "top_k, half": (jaxfed.compression.top_k(0.5, feedback=False), 1.0),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", SHORTER)
def test_compressed_messages_take_as_few_bytes_as_reported(case, dtype):
    """To the bit, and at most this much more than the transform's coding reports; whole ones are sent as they are."""
    transform, most = SHORTER[case]
    whole = {"w": jax.random.normal(jax.random.key(0), (200, 300)).astype(dtype)}
    sent, _ = transform.apply(whole, (), jax.random.key(1))
    received, data = over_the_wire(flower.pack(sent, deflate=True))
    chex.assert_trees_all_equal(flower.unpack(received, sent), jax.tree.map(np.asarray, sent), strict=True)
    reported = transform.coding(Coding(60_000, 8 * whole["w"].dtype.itemsize, 0, 60_000)).num_bytes
    assert len(data) < most * reported + 1000
    assert case == "top_k, half" or len(data) < 0.6 * len(over_the_wire(flower.pack(sent))[1])
    assert len(over_the_wire(flower.pack(whole, deflate=True))[1]) <= whole["w"].nbytes + 1000


def test_odd_numbers_keep_their_bits():
    odd = np.array([0x7FC00001, 0xFFC00000, 0x80000000, 0, 0x7F800000, 1] * 100, np.uint32).view(np.float32)
    for numbers in (odd, np.zeros((3, 200), np.int8), np.ones(300, bool), np.full(300, 2.5, np.complex64)):
        unpacked = flower.unpack(over_the_wire(flower.pack([numbers], deflate=True))[0], [numbers])[0]
        assert unpacked.tobytes() == numbers.tobytes()
        assert (unpacked.dtype, unpacked.shape) == (numbers.dtype, numbers.shape)


def test_damaged_compressed_messages_are_refused_and_never_grow():
    """Every byte changed, every length cut, and a stream that inflates to far more than the array."""
    numbers = (np.arange(600) % 7).astype(np.float32)
    data = codec.encode(numbers)
    bomb = bytes(4) + zlib.compress(bytes(1 << 24))
    changed = [data[:at] + bytes([byte ^ 0xFF]) + data[at + 1 :] for at, byte in enumerate(data)]
    for each in [bomb, b"", data + b"0", *(data[:at] for at in range(len(data))), *changed]:
        record = ArrayRecord({"0": Array("float32", (600,), codec.FORM, each)})
        with contextlib.suppress(flower.RefusedError):
            assert flower.unpack(record, [numbers])[0].shape == (600,)
    with pytest.raises(flower.RefusedError, match="bytes that are no array"):
        flower.unpack(ArrayRecord({"0": Array("float32", (600,), codec.FORM, bomb)}), [numbers])
    with pytest.raises(ValueError, match="2401 bytes, expected 2400"):
        codec.decode(bomb, numbers.dtype, numbers.shape)


REFUSED = {
    "missing": ({}, "a: expected float32[2], got nothing"),
    "unexpected": ({"a": (np.ones(2, np.float32), {}), "b": (np.ones(1), {})}, "b: expected nothing, got an array"),
    "shape": ({"a": (np.ones(3, np.float32), {})}, "a: expected float32[2], got float32[3]"),
    "dtype": ({"a": (np.ones(2), {})}, "a: expected float32[2], got float64[2]"),
    "false name": ({"a": (np.ones(2), {"dtype": "float32"})}, "got float64[2] under a false name"),
    "no bytes": ({"a": (np.ones(2, np.float32), {"data": b""})}, "bytes that are no array"),
    "cut off": ({"a": (np.ones(2, np.float32), {"data": b"\x93NUMPY\x01"})}, "bytes that are no array"),
    "a pickle": ({"a": (np.ones(2, np.float32), {"data": b"\x80\x04N."})}, "bytes that are no array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_expected_is_refused(case):
    sent, message = REFUSED[case]
    made = {name: {**vars(Array(array)), **changes} for name, (array, changes) in sent.items()}
    arrays = {
        name: Array(*(each[field] for field in ("dtype", "shape", "stype", "data"))) for name, each in made.items()
    }
    with pytest.raises(flower.RefusedError) as refusal:
        flower.unpack(ArrayRecord(arrays), {"a": jax.ShapeDtypeStruct((2,), np.float32)})
    assert message in str(refusal.value)
    assert "deploy the same" in str(refusal.value)


def test_names_that_clash_are_refused():
    with pytest.raises(ValueError, match="a/b"):
        flower.pack({"a/b": np.ones(1), "a": {"b": np.ones(1)}})


def row(number):
    return jaxfed.ClientRow({"h": np.full(3, number, np.float32)}, ())


def test_rows_roll_back_and_are_forgotten(tmp_path):
    """A client continues from the row of the round in which it was last counted; what came later is gone."""
    with Rows(tmp_path, row(-1)) as rows:
        chex.assert_trees_all_equal(rows.after(NEVER), row(-1))
        for number in (0, 2, 3):
            rows.keep(number, row(number), NEVER)
    with Rows(tmp_path, row(-1)) as rows:
        chex.assert_trees_all_equal(rows.after(2), row(2))
        assert checkpoint.steps(tmp_path) == [1, 3]
        rows.keep(5, row(5), since=2)
        assert checkpoint.steps(tmp_path) == [3, 6]
        chex.assert_trees_all_equal(rows.after(2), row(2))
        chex.assert_trees_all_equal(rows.after(NEVER), row(-1))
        assert checkpoint.steps(tmp_path) == []


def test_rows_that_are_lost_or_in_use_are_named(tmp_path):
    with Rows(tmp_path, row(-1)) as rows:
        rows.keep(4, row(4), NEVER)
        with pytest.raises(checkpoint.CheckpointError, match=r"after round 2 .* after rounds \[4\].*running sums"):
            rows.after(2)
        with pytest.raises(checkpoint.CheckpointError, match="writer"):
            Rows(tmp_path, row(-1))


def test_instructions_and_members_cross():
    for batching in (jaxfed.data.Steps(2, 4), jaxfed.data.Epochs(1, 8)):
        instruction = Instruction("run", 3, NEVER, 7, batching, "{}")
        assert Instruction.from_record(instruction.to_record()) == instruction
    member = Member(2, 10, SAMPLE)
    assert Member.from_record(member.to_record(), 3) == member
    with pytest.raises(flower.RefusedError, match="client from 0 to 1 .* got client 2"):
        Member.from_record(member.to_record(), 2)
    with pytest.raises(flower.RefusedError, match="client 2: expected samples .* as client 0 has"):
        member.check_like(Member(0, 10, {**SAMPLE, "x": SAMPLE["y"]}))
    with pytest.raises(flower.RefusedError, match="same version"):
        Instruction.from_record(ConfigRecord({"batching": "steps"}))
    with pytest.raises(flower.RefusedError, match="letters and digits"):
        Instruction.from_record(Instruction("../run", 3, NEVER, 7, batching, "{}").to_record())
    with pytest.raises(flower.RefusedError, match="rate: 0.1 there, 0.2 here"):
        check_same('{"rate": 0.1, "name": "a"}', '{"rate": 0.2, "name": "a"}')


def noisy(params, batch, key):
    """Keys must be right as well."""
    loss, aux = problems.loss_fn(params, batch, key)
    return loss + 0.1 * jnp.sum(params["bias"] * jax.random.normal(key, (problems.CLASSES,))), aux


def with_state(params, state, batch, key):
    loss, aux = problems.loss_fn({**params, "bias": params["bias"] + state["shift"]}, batch, key)
    return loss, ({"shift": 0.5 * state["shift"] + params["bias"]}, aux)


STATE = {"shift": jnp.full(problems.CLASSES, 0.1, jnp.float32)}


class Deployed:
    """Three clients in this process, and the simulation that they are compared with."""

    def __init__(
        self, folder, algorithm, model_state=(), trouble=lambda number, client, reply: reply, params=PROBLEM.params
    ):
        self.folder, self.algorithm = folder, algorithm
        self.start = algorithm.init(params, len(CLIENTS), model_state)
        app = flower.client_app(
            algorithm,
            params,
            lambda context: CLIENTS[context.node_config["partition-id"] % len(CLIENTS)],
            folder / "rows",
            model_state=model_state,
        )
        self.grid = LoopbackGrid([app] * len(CLIENTS), trouble)

    def serve(self, **options):
        chosen = arguments(**{"seed": 31, "batching": jaxfed.Steps(2, 4), **options})
        plan, replies = chosen.pop("layout").plan, chosen.pop("replies", flower.Replies())
        replies = dataclasses.replace(replies, plan=plan)
        return flower.serve(self.grid, self.algorithm, self.start, replies=replies, **chosen)

    def simulate(self, **options):
        chosen = arguments(**{"seed": 31, "batching": jaxfed.Steps(2, 4), **options})
        return jaxfed.simulate(self.algorithm, self.start, jaxfed.data.client_data(CLIENTS), **chosen)


def rows_on_disk(folder):
    """The newest row of every client, leaves [N, ...]."""
    rows = [checkpoint.load(each)["memory"] for each in sorted(folder.glob("*/client-*"))]
    assert len(rows) == len(CLIENTS)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def sent_shorter(loss_fn, **hyperparameters):
    """Compressed messages, of which the server leaves one out: that client goes back to its row as it was."""
    algorithm = jaxfed.fedspeed(loss_fn, **hyperparameters)
    return jaxfed.uplink(algorithm, jaxfed.compression.top_k(0.5), aggregate=jaxfed.robust.krum(0, selected=2))


CASES = {
    "fedspeed": (
        jaxfed.fedspeed,
        {"relaxation": 0.1},
        {"batching": jaxfed.Epochs(1, 4), "sampler": jaxfed.FixedSize(2, weights="samples")},
    ),
    "scaffold": (jaxfed.scaffold, {}, {"sampler": jaxfed.FixedSize(2), "plan": jaxfed.chunked(2)}),
    "fedadam": (jaxfed.fedadam, {}, {"sampler": jaxfed.CoinFlips(0.5), "plan": jaxfed.map()}),
    "fedavg": (jaxfed.fedavg, {}, {"batching": jaxfed.Epochs(1, 4), "sampler": jaxfed.FixedSize(2, weights=[1, 2, 3])}),
    "uplink": (sent_shorter, {}, {"sampler": jaxfed.FixedSize(3)}),
}


@pytest.mark.parametrize("name", CASES)
def test_real_clients_equal_simulated_ones(name, tmp_path):
    build, hyperparameters, options = CASES[name]
    stateful = name == "fedavg"
    loss_fn = jaxfed.Stateful(with_state, "local") if stateful else noisy
    algorithm = build(loss_fn, learning_rate_decay=0.9, **hyperparameters)
    deployed = Deployed(tmp_path, algorithm, STATE if stateful else ())
    server, history = deployed.serve(rounds=3, evaluate=lambda params: {"bias": params["bias"][0]}, **options)
    expected, simulated = deployed.simulate(rounds=3, evaluate=lambda params: {"bias": params["bias"][0]}, **options)
    chex.assert_trees_all_close(server, expected, atol=1e-6)
    for column in ("loss", "gradient_norm", "memory_norm", "samples", "num_used", "inconsistency", "learning_rate"):
        np.testing.assert_allclose(history.rounds[column], simulated.rounds[column], atol=1e-5)
    np.testing.assert_allclose(history.evaluations["bias"], simulated.evaluations["bias"], atol=1e-6)
    assert history.rounds["num_missing"] == history.rounds["num_refused"] == [0, 0, 0]
    assert (tmp_path / "rows").exists() == (name != "fedadam"), "only clients that keep something write it down"


def test_what_is_compressed_is_short_on_the_wire_as_well(tmp_path):
    """Replies of a run with 8-bit deltas, in the bytes that Flower sends; the results are those of `simulate`."""
    lengths = []

    def wide(params, batch, key):
        loss, aux = problems.loss_fn({name: params[name] for name in PROBLEM.params}, batch, key)
        return loss + 0.5 * jnp.mean((params["wide"] - jnp.mean(batch["x"])) ** 2), aux

    def measure(number, client, reply):
        lengths.append(len(over_the_wire(reply.content["message"])[1]))
        return reply

    params = {**PROBLEM.params, "wide": np.random.default_rng(0).normal(size=10_000).astype(np.float32)}
    algorithm = jaxfed.uplink(jaxfed.fedavg(wide, client_learning_rate=100.0), jaxfed.compression.quantise(8))
    deployed = Deployed(tmp_path, algorithm, trouble=measure, params=params)
    server, history = deployed.serve(rounds=2, sampler=jaxfed.FixedSize(3))
    expected, _ = deployed.simulate(rounds=2, sampler=jaxfed.FixedSize(3))
    chex.assert_trees_all_close(server, expected, atol=1e-6)
    assert len(lengths) == 6
    assert max(lengths) < history.rounds["sent_bytes"][0] + 2_000


@dataclasses.dataclass(frozen=True)
class Without:
    """The cohorts of another sampler without those who take no part: (round, client)."""

    sampler: jaxfed.FixedSize
    gone: frozenset

    def num_slots(self, num_clients):
        return self.sampler.num_slots(num_clients)

    def draw(self, seed, number, num_clients):
        ids = self.sampler.draw(seed, number, num_clients).tolist()
        return np.array([-1 if (number, client) in self.gone else client for client in ids], np.int32)


@dataclasses.dataclass(frozen=True)
class Emptied:
    """The cohorts of another sampler but for one round, in which no client is drawn."""

    sampler: jaxfed.FixedSize
    empty: int

    def num_slots(self, num_clients):
        return self.sampler.num_slots(num_clients)

    def draw(self, seed, number, num_clients):
        ids = self.sampler.draw(seed, number, num_clients)
        return np.full_like(ids, -1) if number == self.empty else ids


def test_clients_without_a_usable_reply_take_no_part(tmp_path):
    """Replies lost after the local work, mis-shaped, not finite, late, or of a node that is lost; all are counted."""
    troubles = {(1, 0): "lost", (1, 1): "shape", (1, 2): "nan", (2, 0): "late", (3, 1): "gone"}

    def trouble(number, client, reply):
        match troubles.get((number, client)):
            case "lost":
                raise RuntimeError("lost")
            case "shape":
                reply.content["message"]["delta/bias"] = Array(np.ones(1, np.float32))
            case "nan":
                reply.content["message"]["delta/bias"] = Array(np.full(problems.CLASSES, np.nan, np.float32))
            case "late":
                return None
            case "gone":
                return deployed.grid.reconnect(client)
        return reply

    deployed = Deployed(tmp_path, jaxfed.fedspeed(problems.loss_fn), trouble=trouble)
    options = {"rounds": 5}
    server, history = deployed.serve(sampler=jaxfed.FixedSize(3), replies=flower.Replies(timeout=1.0), **options)
    assert history.rounds["num_missing"] == [0, 1, 1, 1, 0]
    assert history.rounds["num_refused"] == [0, 1, 0, 0, 0]
    assert history.rounds["num_excluded"] == [0, 1, 0, 0, 0]
    assert history.rounds["num_used"] == [3, 0, 2, 2, 3]
    expected, _ = deployed.simulate(sampler=Without(jaxfed.FixedSize(3), frozenset(troubles)), **options)
    chex.assert_trees_all_close(server, expected, atol=1e-6)
    means = jax.tree.map(lambda leaf: leaf.mean(axis=0), rows_on_disk(tmp_path / "rows"))
    chex.assert_trees_all_close(server.extra, means, atol=1e-6)


def nan(number, client, reply):
    """What a client that diverged sends."""
    reply.content["message"]["delta/bias"] = Array(np.full(problems.CLASSES, np.nan, np.float32))
    return reply


def lost(number, client, reply):
    raise RuntimeError("lost")


FEDAVG = jaxfed.fedavg(problems.loss_fn)


def test_a_round_without_replies_has_no_loss(tmp_path):
    """Means over no client are not 0.0; an empty round is counted, here before any client has connected."""

    def trouble(number, client, reply):
        return lost(number, client, reply) if number == 1 else reply

    deployed = Deployed(tmp_path, FEDAVG, trouble=trouble)
    server, history = deployed.serve(rounds=3, batching=jaxfed.Steps(1, 4), sampler=Emptied(jaxfed.FixedSize(2), 0))
    assert history.rounds["num_used"] == [0, 0, 2]
    assert [each is None for each in history.rounds["loss"]] == [True, True, False]
    assert history.rounds["num_missing"] == [0, 2, 0]
    assert int(server.round) == 3
    chex.assert_tree_all_finite(server)


@pytest.mark.parametrize(("offline", "rounds"), [(0, 1), (1, 3)], ids=["all reply", "one is offline"])
def test_clients_that_return_nothing_finite_stop_the_run(offline, rounds, tmp_path):
    """At once where all of them do; where others are offline, after three such rounds."""
    infos = []

    def trouble(number, client, reply):
        return (lost if client < offline else nan)(number, client, reply)

    deployed = Deployed(tmp_path, FEDAVG, trouble=trouble)
    clients = re.escape(f"clients {list(range(offline, 3))}")
    with pytest.raises(FloatingPointError, match=f"round {rounds - 1}: every client .*: {clients}") as stopped:
        deployed.serve(
            rounds=9,
            batching=jaxfed.Steps(1, 4),
            sampler=jaxfed.FixedSize(3),
            callbacks=[lambda server, info: infos.append(info)],
        )
    assert len(infos) == rounds - 1
    assert stopped.value.state.history.rounds["round"] == list(range(1, rounds + 1))


def test_a_stopped_server_continues_and_clients_go_back_with_it(tmp_path):
    """Stopped two rounds after its last checkpoint, in both of which the same clients were counted."""
    deployed = Deployed(tmp_path, jaxfed.scaffold(problems.loss_fn))
    options = {"rounds": 6, "sampler": jaxfed.FixedSize(2)}
    kept = {"checkpoint": jaxfed.Checkpointing(tmp_path / "server", every=3, keep=1)}

    def stop(server, info):
        if server.round == 5:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        deployed.serve(callbacks=[stop], **options, **kept)
    assert checkpoint.steps(tmp_path / "server") == [3]
    server, history = deployed.serve(**options, **kept)
    expected, _ = deployed.simulate(**options)
    chex.assert_trees_all_close(server, expected, atol=1e-6)
    assert history.rounds["round"] == [1, 2, 3, 4, 5, 6]
    means = jax.tree.map(lambda leaf: leaf.mean(axis=0), rows_on_disk(tmp_path / "rows"))
    chex.assert_trees_all_close(server.extra, means, atol=1e-6)
    assert max(len(checkpoint.steps(each)) for each in (tmp_path / "rows").glob("*/*")) <= 4
    with pytest.raises(ValueError, match="another run .*seed: 31 there, 1 here"):
        deployed.serve(seed=1, **options, **kept)


def test_clients_of_another_algorithm_and_unknown_nodes_take_no_part(tmp_path, caplog):
    deployed = Deployed(tmp_path, jaxfed.fedavg(problems.loss_fn))
    other = Deployed(tmp_path, jaxfed.fedavg(problems.loss_fn, client_learning_rate=0.2))
    (app, _), nodes = deployed.grid.nodes[100], deployed.grid.nodes
    nodes.update({101: (app, None), 102: other.grid.nodes[102], 103: (app, 9)})
    _, history = deployed.serve(
        rounds=1, batching=jaxfed.Steps(1, 4), sampler=jaxfed.FixedSize(3), replies=flower.Replies(patience=0.1)
    )
    assert (history.rounds["num_used"], history.rounds["num_missing"]) == ([1], [2])
    assert "client_learning_rate: 0.1 there, 0.2 here" in caplog.text
    assert 'expected "partition-id", an integer' in caplog.text
    assert "expected a client from 0 to 2 with samples, got client 9" in caplog.text


def test_a_client_of_another_schedule_or_loss_is_refused_and_named(tmp_path, caplog):
    """Differences that no hyperparameter shows: a rate a hundred times as high from round 9 on, and another loss."""

    def rate(factor):
        return lambda number: jnp.where(number < 9, 0.1, 0.1 * factor)

    def other_loss(params, batch, key):
        loss, aux = problems.loss_fn(params, batch, key)
        return 2.0 * loss, aux

    deployed = Deployed(tmp_path, jaxfed.fedavg(problems.loss_fn, client_learning_rate=rate(1.0)))
    faster = Deployed(tmp_path, jaxfed.fedavg(problems.loss_fn, client_learning_rate=rate(100.0)))
    other = Deployed(tmp_path, jaxfed.fedavg(other_loss, client_learning_rate=rate(1.0)))
    deployed.grid.nodes.update({101: faster.grid.nodes[101], 102: other.grid.nodes[102]})
    options = {"batching": jaxfed.Steps(1, 4), "sampler": jaxfed.FixedSize(3), "checkpoint": tmp_path / "server"}
    _, history = deployed.serve(rounds=1, **options)
    assert (history.rounds["num_used"], history.rounds["num_missing"]) == ([1], [2])
    assert re.search(r"client 1 failed: .*learning rates: .*, 10.0\] here; client update: ", caplog.text)
    assert re.search(r"client 2 failed: .*\(loss function: \w+ there, \w+ here; client update: ", caplog.text)
    other.grid.nodes = deployed.grid.nodes
    with pytest.raises(ValueError, match="holds another run .*loss function: "):
        other.serve(rounds=2, **options)


def test_what_ends_a_deployed_run_carries_its_state_and_a_server_alone_is_refused(tmp_path):
    deployed = Deployed(tmp_path, jaxfed.scaffold(problems.loss_fn))
    options = {"rounds": 4, "sampler": jaxfed.FixedSize(2)}

    def stop(server, info):
        if server.round == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped") as ended:
        deployed.serve(callbacks=[stop], **options)
    deployed.start = ended.value.state.server
    with pytest.raises(ValueError, match="expected the clients' rows with a server that has done 2 rounds"):
        deployed.serve(**options)
    deployed.start = ended.value.state
    server, history = deployed.serve(**options)
    assert history.rounds["round"] == [1, 2, 3, 4]
    deployed.start = deployed.algorithm.init(PROBLEM.params, len(CLIENTS))
    chex.assert_trees_all_close(server, deployed.simulate(**options)[0], atol=1e-6)


def test_without_flwr_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jaxfed.flower")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ImportError, match=r"jaxfed-jaxspec\[flower\]"):
        importlib.import_module("jaxfed.flower")


@pytest.mark.slow
def test_a_deployment_of_real_processes(tmp_path, monkeypatch):
    """One SuperLink, three SuperNodes, every client's round in a process of its own.

    FedSpeed and SCAFFOLD equal the simulation; then FedSpeed continues, one reply is lost after the local work and one
    SuperNode is killed: that round has no replies of theirs, and running sum and rows still agree.
    """
    monkeypatch.syspath_prepend(APP)
    task = importlib.import_module("flower_app.task")

    def expected(name, rounds, gone=()):
        algorithm, options = task.algorithm_of(name), dict(task.ROUNDS)
        sampler = Without(options.pop("sampler"), frozenset(gone))
        data = jaxfed.data.client_data(task.CLIENTS)
        start = task.start_of(algorithm)
        server, _ = jaxfed.simulate(algorithm, start, data, rounds=rounds, sampler=sampler, **arguments(**options))
        return server

    def check(name, rounds, gone=()):
        history = link.history(tmp_path / name)
        like = expected(name, rounds, gone)
        server = checkpoint.load(tmp_path / name / "server", like, part="server")
        chex.assert_trees_all_close(server, like, atol=1e-6)
        means = jax.tree.map(lambda leaf: leaf.mean(axis=0), rows_on_disk(tmp_path / name / "rows"))
        chex.assert_trees_all_close(dict(server.extra), means, atol=1e-6)
        return history["rounds"]["num_missing"]

    with SuperLink(tmp_path, len(task.CLIENTS)) as link:
        for name in ("fedspeed", "scaffold"):
            link.run(tmp_path / name, algorithm=name)
        assert check("fedspeed", 3) == check("scaffold", 3) == [0, 0, 0]
        programs = set((tmp_path / "programs").iterdir())
        link.run(tmp_path / "fedspeed", rounds=5, lose="3:0", hang="3:2")
        link.until(tmp_path / "fedspeed" / "hanging")
        link.nodes[2].kill()
        link.start_node(2)
        assert check("fedspeed", 5, {(3, 0), (3, 2)}) == [0, 0, 0, 2, 0]
        assert set((tmp_path / "programs").iterdir()) == programs, "a fresh process compiles nothing again"
