"""A tiny softmax regression over a few clients, in the form of the package and in that of the NumPy oracles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxfed

FEATURES, CLASSES, CLIENTS = 4, 3, 5


class Problem(NamedTuple):
    """Samples of every client, drawn anew for each test module."""

    clients: list[dict[str, np.ndarray]]
    params: dict[str, jax.Array]


def make_problem(seed: int = 0, dtype: type = np.float64) -> Problem:
    generator = np.random.default_rng(seed)
    clients = []
    for _ in range(CLIENTS):
        count = int(generator.integers(7, 14))
        inputs = generator.normal(size=(count, FEATURES)).astype(dtype)
        clients.append({"x": inputs, "y": generator.integers(CLASSES, size=count).astype(np.int32)})
    bias, weight = generator.normal(size=CLASSES), generator.normal(size=(FEATURES, CLASSES))
    return Problem(clients, {"bias": jnp.asarray(bias.astype(dtype)), "weight": jnp.asarray(weight.astype(dtype))})


def loss_fn(params, batch, key):
    product = batch["x"] @ params["weight"]
    logits = product + jnp.broadcast_to(params["bias"], product.shape)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)[:, 0]
    return jaxfed.masked_mean(losses, batch["mask"]), {"count": jnp.sum(batch["mask"])}


def flat(params: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.ravel(params["bias"]), np.ravel(params["weight"])])


def indices(problem: Problem, seed: int, ids: list[int], num_steps: int, batch_size: int) -> np.ndarray:
    """Sample numbers [C, K, B]; −1 where a batch is short: client by client the last batch is one sample short."""
    generator = np.random.default_rng(seed)
    index = np.full((len(ids), num_steps, batch_size), -1)
    for slot, client in enumerate(ids):
        for step in range(num_steps if client >= 0 else 0):
            count = batch_size - (step == num_steps - 1)
            index[slot, step, :count] = generator.permutation(len(problem.clients[client]["x"]))[:count]
    return index


def cohort_of(problem: Problem, ids: list[int], index: np.ndarray, rows: jaxfed.ClientRow) -> jaxfed.Cohort:
    """The cohort as the package takes it; absent samples hold NaN, so that nothing may look at them."""
    clients = [problem.clients[max(client, 0)] for client in ids]
    x = np.stack([client["x"][np.maximum(each, 0)] for client, each in zip(clients, index, strict=True)])
    y = np.stack([client["y"][np.maximum(each, 0)] for client, each in zip(clients, index, strict=True)])
    batches = {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.asarray(index >= 0)}
    numbers = jnp.asarray(ids, jnp.int32)
    return jaxfed.Cohort(numbers, jaxfed.DeviceStore().gather(rows, numbers), batches)


def oracle_cohort(problem: Problem, ids: list[int], index: np.ndarray):
    """The cohort as the oracles take it: (client, batches) of the clients that are there."""
    cohort = []
    for client, steps in zip(ids, index, strict=True):
        if client >= 0:
            samples = problem.clients[client]
            kept = [step[step >= 0] for step in steps]
            cohort.append((client, [(samples["x"][each], samples["y"][each]) for each in kept if len(each)]))
    return cohort
