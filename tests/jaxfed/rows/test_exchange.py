"""Rows that travel between devices: routes of a ragged all-to-all, which XLA has for TPUs and not for CPUs.

Here the collective is written out from its documentation, on eight host devices.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxfed import DeviceStore
from jaxfed.layout.sharding import Shardings, put
from jaxfed.rows import _exchange

DEVICES, KEPT, SLOTS = 8, 5, 3
CLIENTS, COHORT = DEVICES * KEPT, DEVICES * SLOTS


def documented(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What ``jax.lax.ragged_all_to_all`` says it does, for slices of one row; NaN where the sizes contradict."""
    everywhere = lambda value: jax.lax.all_gather(value, axis_name)  # noqa: E731
    sent, begins, sizes, ends = map(everywhere, (operand, input_offsets, send_sizes, output_offsets))
    device, slices = jax.lax.axis_index(axis_name), len(send_sizes) // DEVICES
    agree = True
    for source in range(DEVICES):
        for number in range(slices):
            at = device * slices + number
            agree &= recv_sizes[source * slices + number] == sizes[source, at]
            place = jnp.where(sizes[source, at] == 1, ends[source, at], len(output))
            output = output.at[place].set(sent[source, begins[source, at]], mode="drop")
    return jnp.where(agree, output, jnp.nan).astype(output.dtype)


def rows_of(seed, count):
    number = np.random.default_rng(seed).normal(size=(count, 2, 3)).astype(np.float32)
    return {"dual": jnp.asarray(number), "times": jnp.asarray(number[:, 0, 0])}


def cohort(seed, kind):
    """All from one device, from everywhere, or with empty slots."""
    generator = np.random.default_rng(seed)
    ids = generator.permutation(CLIENTS)[:COHORT].astype(np.int32)
    if kind == "of one device":
        ids[:] = -1
        ids[generator.permutation(COHORT)[:KEPT]] = 2 * KEPT + np.arange(KEPT)
    if kind == "empty slots":
        ids[generator.random(COHORT) < 0.5] = -1
    return jnp.asarray(ids)


@pytest.fixture(scope="module", params=[("clients",), ("hosts", "chips")], ids=len)
def places(request):
    devices = np.array(jax.devices()[:DEVICES])
    return Shardings.of(Mesh(devices.reshape((2, 4) if len(request.param) == 2 else -1), request.param))


@pytest.mark.parametrize("kind", ["from everywhere", "of one device", "empty slots"])
def test_rows_arrive_as_they_are_gathered_and_scattered(places, kind):
    store, ids = DeviceStore(), cohort(3, kind)
    rows, new = put(rows_of(0, CLIENTS), places.spread), put(rows_of(1, COHORT), places.spread)
    gather = jax.jit(lambda rows, ids: _exchange.gather(rows, ids, places, documented))
    scatter = jax.jit(lambda rows, ids, new: _exchange.scatter(rows, ids, new, places, documented))
    chex.assert_trees_all_equal(gather(rows, ids), store.gather(rows, ids))
    chex.assert_trees_all_equal(scatter(rows, ids, new), store.scatter(rows, ids, new))


def test_rows_are_stored_in_their_own_dtype(places):
    rows, new = put(jax.tree.map(jnp.bfloat16, rows_of(0, CLIENTS)), places.spread), rows_of(1, COHORT)
    scattered = jax.jit(lambda *arrays: _exchange.scatter(*arrays, places, documented))(rows, cohort(0, ""), new)
    chex.assert_trees_all_equal(scattered, DeviceStore().scatter(rows, cohort(0, ""), new))


def test_clients_that_keep_nothing_send_nothing(places):
    assert jax.jit(lambda ids: _exchange.gather({}, ids, places, documented))(cohort(0, "")) == {}


def test_cpus_gather_by_index(places):
    assert not _exchange.applies(places)
    assert not _exchange.applies(Shardings())
