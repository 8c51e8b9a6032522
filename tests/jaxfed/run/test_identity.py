"""What makes two runs the same: every edit of what a run computes or trains on is named, and nothing else is."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfed
from jaxfed.run import _fingerprints as fingerprints
from jaxfed.run import identity
from tests.support.jaxfed import problems

PROBLEM = problems.make_problem(21, np.float32)
BATCHING = jaxfed.data.Steps(2, 4)


def scaled(factor):
    def loss_fn(params, batch, key):
        loss, aux = problems.loss_fn(params, batch, key)
        return factor * loss, aux

    return loss_fn


def shifted(shift):
    """The edit is in an array that the function closes over."""
    array = jnp.arange(problems.CLASSES, dtype=jnp.float32).at[1].add(shift)

    def loss_fn(params, batch, key):
        return problems.loss_fn({**params, "bias": params["bias"] + array}, batch, key)

    return loss_fn


def schedule(boundary):
    return lambda number: jnp.where(number < boundary, 0.1, 0.05)


def median_of(trim):
    return jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), aggregate=jaxfed.robust.trimmed_mean(trim))


def of(algorithm, clients=PROBLEM.clients):
    server = algorithm.init(PROBLEM.params, len(clients))
    return identity.of_run(algorithm, server, jaxfed.data.client_data(clients), BATCHING, 3)


def with_optimiser(**options):
    return jaxfed.fedavg(problems.loss_fn, client_optimiser=optax.adam(0.1, **options))


def on_server(**options):
    return jaxfed.fedavg(problems.loss_fn, server_optimiser=optax.adam(**options))


def noisy(deviation):
    drawn = jaxfed.FixedSize(3), len(PROBLEM.clients)
    noise = jaxfed.privacy.central_noise(jaxfed.privacy.Central(1.0, deviation, *drawn, delta=0.01))
    return jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), jaxfed.privacy.clip(1.0), aggregate=noise)


def clipped(norm):
    return jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), jaxfed.privacy.clip(norm))


def called_back(factor):
    """A loss with a custom derivative, whose functions are new each time."""
    rounded = jax.custom_vjp(lambda x: jnp.round(x))
    rounded.defvjp(lambda x: (jnp.round(x), x), lambda x, cotangent: (factor * cotangent,))

    def loss_fn(params, batch, key):
        loss, aux = problems.loss_fn({**params, "bias": rounded(params["bias"])}, batch, key)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        seen = jax.pure_callback(lambda each: each, shape, jnp.float32(1.0), vmap_method="sequential")
        return loss * seen, aux

    return jaxfed.fedavg(loss_fn)


EDITS = {
    "loss": (lambda each: jaxfed.fedavg(scaled(each)), 1.0, 1.5, {"loss function", "client update"}),
    "closure": (lambda each: jaxfed.fedavg(shifted(each)), 0.0, 0.5, {"loss function", "client update"}),
    "callback and custom gradient": (called_back, 1.0, 2.0, {"client update"}),
    "schedule": (
        lambda each: jaxfed.fedavg(problems.loss_fn, client_learning_rate=schedule(each)),
        8,
        70,
        {"learning rates", "client update"},
    ),
    "between": (
        lambda each: jaxfed.fedavg(problems.loss_fn, client_learning_rate=schedule(each)),
        18,
        19,
        {"client update"},
    ),
    "client optimiser": (lambda each: with_optimiser(b1=each), 0.9, 0.8, {"client update"}),
    "server optimiser": (lambda each: on_server(learning_rate=each), 0.1, 0.2, {"server update"}),
    "server b1": (lambda each: on_server(learning_rate=0.1, b1=each), 0.9, 0.8, {"server update"}),
    "transform": (clipped, 1.0, 2.0, {"client update"}),
    "aggregate": (median_of, 0.1, 0.4, {"aggregate"}),
    "noise": (noisy, 1.0, 2.0, {"aggregate"}),
    "clip norm": (lambda each: jaxfed.fedavg(problems.loss_fn, clip_norm=each), 1.0, 2.0, {"client update"}),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_named_and_another_trace_is_the_same(name):
    build, before, after, names = EDITS[name]
    first = json.loads(json.dumps(of(build(before))))
    assert identity.differences(first, of(build(before))) == {}
    assert set(identity.differences(first, of(build(after)))) == names


def edited(index, name, at, value):
    clients = [dict(each) for each in PROBLEM.clients]
    clients[index][name] = clients[index][name].copy()
    clients[index][name][at] = value
    return clients


def test_every_bit_of_the_data_counts_and_its_layout_does_not():
    first = identity.of_samples(jaxfed.data.client_data(PROBLEM.clients))
    label = (PROBLEM.clients[4]["y"][2] + 1) % problems.CLASSES
    swapped = [dict(each) for each in PROBLEM.clients]
    swapped[0]["y"], swapped[2]["x"] = swapped[0]["y"][::-1].copy(), swapped[2]["x"][:, ::-1].copy()
    for clients, names in [
        (edited(4, "y", 2, label), {"data 'y'"}),
        (edited(0, "x", (3, 1), np.nextafter(PROBLEM.clients[0]["x"][3, 1], np.float32(9))), {"data 'x'"}),
        (swapped, {"data 'x'", "data 'y'"}),
    ]:
        assert set(identity.differences(first, identity.of_samples(jaxfed.data.client_data(clients)))) == names
    lengths = [len(each["y"]) for each in PROBLEM.clients]
    ends = np.cumsum(lengths)
    parts = [np.arange(end - count, end) for end, count in zip(ends, lengths, strict=True)]
    whole = {name: np.concatenate([each[name] for each in PROBLEM.clients]) for name in ("x", "y")}
    back = {name: array[::-1].copy() for name, array in whole.items()}
    turned = jaxfed.data.partitioned(back, [ends[-1] - 1 - part for part in parts])
    assert identity.of_samples(turned) == first
    mesh = jax.sharding.NamedSharding(jax.make_mesh((2,), ("clients",)), jax.sharding.PartitionSpec("clients"))
    array = jnp.arange(24.0).reshape(8, 3)
    np.testing.assert_array_equal(fingerprints.of_rows(jax.device_put(array, mesh)), fingerprints.of_rows(array))


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float16", "uint32", "complex64", "key"])
def test_rows_of_every_dtype_have_digests_of_their_own(dtype):
    numbers = np.arange(12).reshape(4, 3) % (2 if dtype == "bool" else 12)
    array = jax.random.split(jax.random.key(0), (4, 3)) if dtype == "key" else jnp.asarray(numbers.astype(dtype))
    digests = fingerprints.of_rows(array)
    assert (digests.shape, digests.dtype) == ((4, 2), np.uint32)
    assert len(np.unique(digests, axis=0)) == (2 if dtype == "bool" else 4)


def test_eight_bytes_count():
    with jax.enable_x64(True):
        base = jnp.ones((1, 2), jnp.float64)
        assert (fingerprints.of_rows(base) != fingerprints.of_rows(base.at[0, 1].add(1e-15))).all()


def test_names_and_lines_of_functions_do_not_count():
    def one(params, batch, key):
        return jax.jit(lambda each: each * 2.0)(problems.loss_fn(params, batch, key)[0]), ()

    def other(params, batch, key):
        def twice(each):
            return each * 2.0

        return jax.jit(twice)(problems.loss_fn(params, batch, key)[0]), ()

    assert identity.differences(of(jaxfed.fedavg(one)), of(jaxfed.fedavg(other))) == {}


def run(directory, algorithm, rounds=2, clients=PROBLEM.clients, params=PROBLEM.params, **options):
    server = algorithm.init(params, len(clients))
    chosen = {
        "sampler": jaxfed.FixedSize(3),
        "batching": jaxfed.Steps(2, 4),
        "report": jaxfed.Report(progress=False),
        "checkpoint": directory,
        **options,
    }
    return jaxfed.simulate(algorithm, server, jaxfed.data.client_data(clients), rounds=rounds, **chosen)


def test_a_checkpoint_is_not_continued_with_another_loss_or_other_data(tmp_path):
    run(tmp_path, jaxfed.fedavg(scaled(1.0)), 1)
    with pytest.raises(
        ValueError, match=r"another run \(loss function: \w+ there, \w+ here; client update: .*may_differ"
    ):
        run(tmp_path, jaxfed.fedavg(scaled(1.5)))
    with pytest.raises(ValueError, match=r"another run \(data 'y': int32\[\] \w+ there"):
        run(tmp_path, jaxfed.fedavg(scaled(1.0)), clients=edited(4, "y", 2, (PROBLEM.clients[4]["y"][2] + 1) % 3))
    with pytest.raises(ValueError, match=r"another run \(starting parameters: \["):
        run(tmp_path, jaxfed.fedavg(scaled(1.0)), params=problems.make_problem(22, np.float32).params)
    with pytest.raises(ValueError, match="loss function"):  # not even where there is nothing left to do
        run(tmp_path, jaxfed.fedavg(scaled(1.5)), 1)
    assert jaxfed.Checkpointing(tmp_path, may_differ="client update").may_differ == ("client update",)
    meant = jaxfed.Checkpointing(tmp_path, may_differ=["loss function", "client update"])
    _, history = run(meant, jaxfed.fedavg(scaled(1.5)))
    assert history.rounds["round"] == [1, 2]


def test_a_custom_sampler_is_identified_by_its_cohorts(tmp_path):
    class Turns:
        def __init__(self, stride):
            self.stride = stride

        def num_slots(self, num_clients):
            return 2

        def draw(self, seed, number, num_clients):
            return np.sort(np.array([number, number + self.stride], np.int32) % num_clients)

    algorithm = jaxfed.fedavg(problems.loss_fn)
    draw = functools.partial(run, tmp_path, algorithm)
    draw(rounds=1, sampler=Turns(1))
    draw(rounds=2, sampler=Turns(1))
    with pytest.raises(ValueError, match="cohorts: "):
        draw(rounds=3, sampler=Turns(2))


def test_other_versions_are_named_and_not_compared(tmp_path, monkeypatch):
    run(tmp_path, jaxfed.fedavg(scaled(1.0)), 1)
    monkeypatch.setattr(identity, "PACKAGES", ("jax",))
    with (
        pytest.warns(UserWarning, match="not compared are loss function, first row, client update.*flax.* there"),
        pytest.raises(ValueError, match=r"another run \(data 'y'"),
    ):
        run(tmp_path, jaxfed.fedavg(scaled(1.5)), 3, clients=edited(4, "y", 2, (PROBLEM.clients[4]["y"][2] + 1) % 3))
    with pytest.warns(UserWarning, match="not compared are"):
        run(tmp_path, jaxfed.fedavg(scaled(1.5)), 2)
