"""Trajectories recorded from the FedSpeed authors' program, replayed in float64: one test per file."""

import inspect
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfed
from tests.jaxfed.algorithms import test_newer

DATA = pathlib.Path(__file__).parents[2] / "data" / "fl_trajectories"
FILES = sorted(pathlib.Path(os.environ.get("JAXFED_TRAJECTORIES", DATA)).glob("*_*_*.npz"))
TOLERANCE = 1e-11

# Our name of each hyperparameter of `meta.args`; each factory gets those that it has.
NAMES = {
    "prox_weight": "lamb",
    "ascent_radius": "rho",
    "server_learning_rate": "global_learning_rate",
    "momentum_weight": "alpha",
    "b1": "beta1",
    "b2": "beta2",
    "eps": "epsilon",
}


class Recording(NamedTuple):
    """A recorded run: its arrays, its meta and the name of its algorithm in the registry."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    algorithm: str


def read(path: pathlib.Path) -> Recording:
    arrays = dict(np.load(path))
    meta = json.loads(str(arrays["meta"]))
    return Recording(arrays, meta, meta["method"].lower())


def unflatten(recording: Recording, flat: np.ndarray) -> dict[str, jax.Array]:
    names, shapes = recording.arrays["param_names"], json.loads(str(recording.arrays["param_shapes"]))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    pieces = zip(names, np.split(np.asarray(flat), ends[:-1]), shapes, strict=True)
    return {str(name): jnp.asarray(piece.reshape(shape)) for name, piece, shape in pieces}


def flatten(recording: Recording, params: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.ravel(params[str(name)]) for name in recording.arrays["param_names"]])


def logits_for(recording: Recording):
    names = [str(name) for name in recording.arrays["param_names"]]

    def logits(params, x):
        hidden = x
        for index in range(0, len(names), 2):
            hidden = jnp.tanh(hidden) if index else hidden
            product = hidden @ params[names[index]].T
            hidden = product + jnp.broadcast_to(params[names[index + 1]], product.shape)
        return hidden

    return logits


def loss_for(recording: Recording):
    """The clients' loss; its aux is ‖g₁‖₂, which no info reports (FedSMOO's ascent step has duals in it as well)."""
    logits = logits_for(recording)

    def mean_loss(params, batch):
        rows = jax.nn.log_softmax(logits(params, batch["x"]))
        losses = -jnp.take_along_axis(rows, batch["y"][:, None], axis=1)[:, 0]
        return jaxfed.masked_mean(losses, batch["mask"])

    def loss_fn(params, batch, key):
        return mean_loss(params, batch), optax.tree.norm(jax.grad(mean_loss)(params, batch))

    return loss_fn


def performance(
    recording: Recording, params: dict[str, jax.Array], x: np.ndarray, y: np.ndarray
) -> tuple[float, float]:
    """(mean cross-entropy + wd/2·‖x‖², fraction correct)."""
    rows = np.asarray(jax.nn.log_softmax(logits_for(recording)(params, jnp.asarray(x))))
    decay = recording.meta["args"]["weight_decay"] / 2 * np.sum(flatten(recording, params) ** 2)
    return np.mean(-rows[np.arange(len(y)), y]) + decay, np.mean(rows.argmax(axis=1) == y)


def build(recording: Recording) -> jaxfed.FederatedAlgorithm:
    args = recording.meta["args"]
    factory = jaxfed.algorithms.get(recording.algorithm)
    takes = inspect.signature(factory).parameters
    special = {ours: args[theirs] for ours, theirs in NAMES.items() if ours in takes}
    if "nominal_steps" in takes:
        special["nominal_steps"] = float(recording.meta["local_iteration"])
    return factory(
        loss_for(recording),
        client_learning_rate=args["local_learning_rate"],
        learning_rate_decay=args["lr_decay"],
        weight_decay=args["weight_decay"],
        clip_norm=float(recording.meta["max_norm"]),
        relaxation=args["beta"] if args["use_RI"] else 0.0,
        variant="reference",
        **special,
    )


def recorded_cohort(recording: Recording, round_number: int, store: Any) -> jaxfed.Cohort:
    arrays = recording.arrays
    ids = jnp.asarray(arrays["selected"][round_number], jnp.int32)
    index = arrays["batch_idx"][round_number]
    index = index.reshape(len(index), -1, index.shape[-1])
    clients = np.maximum(arrays["selected"][round_number], 0)[:, None, None]
    batches = {
        "x": jnp.asarray(arrays["x"][clients, np.maximum(index, 0)]),
        "y": jnp.asarray(np.maximum(arrays["y"][clients, np.maximum(index, 0)], 0), jnp.int32),
        "mask": jnp.asarray(index >= 0),
    }
    return jaxfed.Cohort(ids, jaxfed.DeviceStore().gather(store, ids), batches)


def compiled_round(algorithm):
    """One round, and every client's x_K, mean norm before the clip and mean ‖g₁‖₂, from the client's half of it."""

    def run(server, cohort):
        updates = jax.vmap(algorithm.client_update, in_axes=(None, 0, None))(server, cohort, jax.random.key(0))
        delta = updates.message.delta
        finals = jax.tree.map(lambda old, moved: jnp.broadcast_to(old, moved.shape) + moved, server.params, delta)
        finals = updates.row.last_params or finals
        return algorithm.step(server, cohort, jax.random.key(0)), (finals, updates.info.gradient_norm, updates.info.aux)

    return jax.jit(run)


def assert_close(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE, err_msg=what)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trajectory(path):
    recording = read(path)
    with jax.enable_x64(True):
        check_replay(recording)


def check_replay(recording: Recording) -> None:
    arrays, sizes = recording.arrays, recording.arrays["n_samples"]
    algorithm, store = build(recording), jaxfed.DeviceStore()
    params = unflatten(recording, arrays["init_flat"])
    server = algorithm.init(params, len(sizes))
    rows = store.init(algorithm.init_client(params), len(sizes))
    run, visits = compiled_round(algorithm), 0
    there = arrays["y"] >= 0
    samples = {
        "train_perf": (arrays["x"][there], arrays["y"][there]),
        "test_perf": (arrays["test_x"], arrays["test_y"]),
    }
    for number, expected in enumerate(arrays["server_params"]):
        cohort = recorded_cohort(recording, number, rows)
        present = np.flatnonzero(np.asarray(cohort.ids) >= 0)
        (server, new_rows, info), (finals, norms, ascents) = run(server, cohort)
        rows = store.scatter(rows, cohort.ids, new_rows)
        finals = np.stack([flatten(recording, jax.tree.map(lambda leaf, at=at: leaf[at], finals)) for at in present])
        here = slice(visits, visits := visits + len(present))
        now = flatten(recording, server.params)
        assert_close(now, expected, f"server_params of round {number}")
        assert_close(info.learning_rate, arrays["lr"][number], f"lr of round {number}")
        assert_close(norms[present], np.nanmean(arrays["clip_norms"][here], axis=1), f"clip_norms of round {number}")
        if "sam_norms" in arrays and recording.algorithm != "fedsmoo":
            expected = np.nanmean(arrays["sam_norms"][here], axis=1)
            assert_close(ascents[present], expected, f"sam_norms of round {number}")
        for name, (x, y) in samples.items():
            assert_close(performance(recording, server.params, x, y), arrays[name][number], f"{name} of round {number}")
        divergence = np.mean(np.sum((finals - now[None]) ** 2, axis=1))
        assert_close(divergence, arrays["divergence"][number], f"divergence of round {number}")
        if number < 2:
            assert_close(finals, arrays["local_params_first2"][here], f"x_K of round {number}")
    assert_rows_at_end(recording, rows)
    assert_server_at_end(recording, server)


def kept(recording: Recording, memory: Any) -> dict[str, Any]:
    """What a client keeps, by the recording's names."""
    match recording.algorithm:
        case "fedspeed" | "feddyn":
            return {"h_params_list": memory}
        case "fedsmoo":
            return {"h_params_list": memory.params, "mu_params_list": memory.ascent}
        case "scaffold" | "fedgamma":
            return {"c_i_params_list": memory}
    assert memory == ()
    return {}


def assert_rows_at_end(recording: Recording, rows: jaxfed.ClientRow) -> None:
    for client in range(len(recording.arrays["n_samples"])):
        row = jax.tree.map(lambda leaf, client=client: leaf[client], rows)
        for name, memory in kept(recording, row.memory).items():
            expected = recording.arrays[f"end/{name}"][client]
            assert_close(flatten(recording, memory), expected, f"{name} of client {client}")
        if row.last_params != ():
            expected = recording.arrays["end/clients_params_list"][client]
            assert_close(flatten(recording, row.last_params), expected, f"last parameters of client {client}")


def assert_server_at_end(recording: Recording, server: jaxfed.Server) -> None:
    extra = server.extra
    match recording.algorithm:
        case "fedadam":
            held = {"m": jax.tree.map(jnp.negative, extra[0].mu), "v": extra[0].nu}
        case "scaffold" | "fedgamma":
            held = {"c_params_list": extra}
        case "fedsmoo":
            held = {"global_dynamic_dual": extra.ascent}
        case _:
            held = {}
    for name, tree in held.items():
        assert_close(flatten(recording, tree), recording.arrays[f"end/{name}"].ravel(), name)


def test_recordings_are_there():
    assert {read(path).algorithm for path in DATA.glob("*_*_*.npz")} == set(jaxfed.algorithms.registry) - set(
        test_newer.CASES
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_constants_of_the_recordings(path):
    """The two epsilons that our `clip` and `normalised` have built in."""
    meta = read(path).meta
    assert (meta["sam_norm_eps"], meta["clip_eps"]) == (1e-7, 1e-6)
