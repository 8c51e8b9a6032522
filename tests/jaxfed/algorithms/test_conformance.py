"""The table of algorithms: each row is an algorithm, each test a property of all of them.

A new algorithm is a new row of `ROWS`. The row that is no part of the package is the one which the documentation shows.
"""

import functools
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxfed
from jaxfed.core import tree
from jaxfed.layout.sharding import automatic
from tests.support.jaxfed import problems

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "own_algorithm.md"


class Row(NamedTuple):
    """One algorithm, and what the server keeps as a running mean of what in the clients' memories.

    `receives`: clients keep the parameters that they received, which are those of the start in the first round.
    """

    build: Callable[..., jaxfed.FederatedAlgorithm]
    running: Callable[[Any, Any], tuple[Any, Any]] | None = None
    receives: bool = False


def documented() -> Callable[..., jaxfed.FederatedAlgorithm]:
    """The algorithm that the documentation builds."""
    scope: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0], scope)
    return scope["fedrecall"]


def whole(extra, memory):
    return extra, memory


def is_bias(path: str) -> bool:
    return path == "bias"


ROWS = {
    "ditto": Row(jaxfed.ditto),
    "fedadam": Row(jaxfed.fedadam),
    "fedavg": Row(jaxfed.fedavg),
    "fedbn": Row(functools.partial(jaxfed.fedbn, personal=is_bias)),
    "fedcm": Row(jaxfed.fedcm),
    "feddyn": Row(jaxfed.feddyn, whole),
    "fedgamma": Row(jaxfed.fedgamma, whole),
    "fedinit": Row(jaxfed.fedinit),
    "fedlesam": Row(jaxfed.fedlesam, receives=True),
    "fednova": Row(jaxfed.fednova),
    "fedprox": Row(jaxfed.fedprox),
    "fedrecall": Row(documented()),
    "fedrep": Row(functools.partial(jaxfed.fedrep, personal=is_bias, personal_steps=1)),
    "fedsam": Row(jaxfed.fedsam),
    "fedsmoo": Row(jaxfed.fedsmoo, lambda extra, memory: (extra.dual_mean, memory.params)),
    "fedspeed": Row(jaxfed.fedspeed, whole),
    "mofedsam": Row(jaxfed.mofedsam),
    "qfedavg": Row(jaxfed.qfedavg),
    "scaffold": Row(jaxfed.scaffold, whole),
}
NAMES = list(ROWS)
every = pytest.mark.parametrize("name", NAMES)

COHORTS = [[0, 3, -1], [1, 2, 4], [-1, 4, 0], [3, 0, 1]]
SLOTS = [0, 3, -1, 1, 4, 2, -1, -1]  # eight, for meshes; all five clients


def dealt(name: str, values):
    """One of `values` for every row, in turn."""
    return values[NAMES.index(name) % len(values)]


class Setting(NamedTuple):
    algorithm: jaxfed.FederatedAlgorithm
    server: jaxfed.Server
    rows: jaxfed.ClientRow
    cohort: jaxfed.Cohort


@functools.cache
def built(name: str, **options) -> jaxfed.FederatedAlgorithm:
    """A row's algorithm; equal ones share their compiled rounds."""
    return ROWS[name].build(problems.loss_fn, **{"relaxation": 0.1, **options})


def setting(name, ids=(0, 2), num_steps=2, dtype=np.float32, **options) -> Setting:
    """Algorithm, server, rows of all clients and a cohort of a small problem."""
    problem = problems.make_problem(11, dtype)
    algorithm = built(name, **options)
    server = algorithm.init(problem.params, problems.CLIENTS)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params), problems.CLIENTS)
    index = problems.indices(problem, 0, list(ids), num_steps, 4)
    return Setting(algorithm, server, rows, problems.cohort_of(problem, list(ids), index, rows))


compiled = functools.cache(jax.jit)


def step(algorithm, server, cohort, plan=None):
    round_of = compiled(algorithm.step) if plan is None else jax.jit(functools.partial(algorithm.step, plan=plan))
    return round_of(server, cohort, jax.random.key(0))


def member(cohort: jaxfed.Cohort, slot: int) -> jaxfed.Cohort:
    return jax.tree.map(lambda leaf: leaf[slot], cohort)


STANDSTILL = {4: 0.0, 5: 1e-39}


def learning_rate(number):
    """0.2, but 0 in round 4, and in round 5 less than the smallest normal number."""
    return jnp.select([number == each for each in STANDSTILL], list(STANDSTILL.values()), 0.2)


class Round(NamedTuple):
    """A round and what it left."""

    server: jaxfed.Server
    rows: jaxfed.ClientRow
    info: jaxfed.RoundInfo


class Played(NamedTuple):
    """A run of several rounds: before and after, the rows of all clients, rounds, and how often it compiled."""

    first: jaxfed.Server
    last: jaxfed.Server
    untouched: jaxfed.ClientRow
    rows: jaxfed.ClientRow
    rounds: list[Round]
    programs: int


@functools.cache
def played(name: str) -> Played:
    """Fourteen rounds, the cohorts in turn; raises if the round is traced twice."""
    chex.clear_trace_counter()
    algorithm, first, untouched, _ = setting(name, client_learning_rate=learning_rate)
    problem, store = problems.make_problem(11, np.float32), jaxfed.DeviceStore()
    traced_once = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    server, rows, rounds = first, untouched, []
    for number, ids in zip(range(14), itertools.cycle(COHORTS), strict=False):
        index = problems.indices(problem, number, ids, 3, 4)
        cohort = problems.cohort_of(problem, ids, index, rows)
        server, new_rows, info = traced_once(server, cohort, jax.random.key(0))
        rows = store.scatter(rows, cohort.ids, new_rows)
        rounds.append(Round(server, rows, info))
    return Played(first, server, untouched, rows, rounds, traced_once._cache_size())


def test_the_table_is_complete():
    assert set(ROWS) == {*jaxfed.algorithms.registry, *jaxfed.algorithms.personalised, "fedrecall"}


@every
def test_protocol(name):
    """Types and shapes of init, init_client and step, without a computation; the factory's arguments are recorded."""
    algorithm, server, _, cohort = setting(name)
    after, rows, info = jax.eval_shape(algorithm.step, server, cohort, jax.random.key(0))
    row = algorithm.init_client(server.params)
    assert [type(each) for each in (server, after, row, rows, info)] == [
        *[jaxfed.Server] * 2,
        *[jaxfed.ClientRow] * 2,
        jaxfed.RoundInfo,
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(after, server)
    chex.assert_trees_all_equal_shapes_and_dtypes(rows, cohort.rows)
    chex.assert_tree_shape_prefix((rows, info.clients, info.used, info.excluded), (2,))
    chex.assert_trees_all_equal_dtypes(row, rows)
    assert {leaf.shape for leaf in jax.tree.leaves((info.client, info.num_used, info.learning_rate))} == {()}
    assert (int(server.round), int(server.num_clients)) == (0, problems.CLIENTS)
    assert (algorithm.hyperparameters["algorithm"], algorithm.hyperparameters["relaxation"]) == (name, 0.1)


@every
def test_one_trace_and_one_program_for_all_rounds(name):
    """And what comes out of fourteen rounds has the shapes and dtypes of what went in."""
    run = played(name)
    assert run.programs == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(run.last, run.first)
    chex.assert_trees_all_equal_shapes_and_dtypes(run.rows, run.untouched)
    assert int(run.last.round) == 14


@every
def test_learns(name):
    losses = [float(each.info.client.loss) for each in played(name).rounds]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2]), losses


@every
@pytest.mark.parametrize("number", STANDSTILL)
def test_a_learning_rate_of_zero_excludes_no_client_and_keeps_all_state(name, number):
    """Clients have moved along no direction, so the directions that they and the server keep do not change."""
    before, after = played(name).rounds[number - 1 : number + 1]
    present = sum(client >= 0 for client in COHORTS[number % len(COHORTS)])
    assert (int(after.info.num_used), bool(after.info.excluded.any())) == (present, False)
    if name != "fedsmoo" and not ROWS[name].receives:  # its ascent duals follow gradients, not steps
        chex.assert_trees_all_close(after.rows.memory, before.rows.memory, atol=1e-6)
        if name != "fedadam":  # its moments decay
            chex.assert_trees_all_close(after.server.extra, before.server.extra, atol=1e-6)
    if name not in ("feddyn", "fedsmoo", "fedspeed", "fedadam"):  # duals and moments move the server on
        chex.assert_trees_all_close(after.server.params, before.server.params, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].running])
def test_running_mean_is_the_mean_of_all_rows(name):
    """Without ever reading the population: of clients drawn often, once, and never."""
    run = played(name)
    kept, memory = ROWS[name].running(run.last.extra, run.rows.memory)
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), memory)
    chex.assert_trees_all_close(kept, mean, atol=1e-6)
    assert float(tree.norm(kept)) > 1e-3


@every
def test_absent_clients_keep_their_rows(name):
    algorithm, server, rows, cohort = setting(name, ids=(3, -1))
    _, new_rows, _ = step(algorithm, server, cohort)
    after = jaxfed.DeviceStore().scatter(rows, cohort.ids, new_rows)
    others = jnp.array([0, 1, 2, 4])
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[others], each) for each in (after, rows)))
    kept = [each._replace(memory=()) for each in (after, rows)] if ROWS[name].receives else (after, rows)
    assert all(bool(jnp.any(a[3] != b[3])) for a, b in zip(*map(jax.tree.leaves, kept), strict=True))


@every
def test_empty_slots_contribute_nothing(name):
    algorithm, server, _, cohort = setting(name)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf[:1], leaf[1:]]), cohort)
    padded = padded._replace(ids=padded.ids.at[1].set(-1))
    expected, rows, info = step(algorithm, server, cohort)
    actual, padded_rows, padded_info = step(algorithm, server, padded)
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], padded_rows), rows, atol=1e-6)
    chex.assert_trees_all_close(padded_info.client, info.client, atol=1e-6)
    assert padded_info.num_used == 2


@every
def test_empty_steps_change_nothing(name):
    """An all-False mask anywhere in the round, over samples that are NaN."""
    algorithm, server, _, cohort = setting(name, client_optimiser=optax.sgd(0.1, momentum=0.9))
    gap = {key: jnp.insert(leaf, 1, leaf[:, 1], axis=1) for key, leaf in cohort.batches.items()}
    gap["x"], gap["mask"] = gap["x"].at[:, 1].set(jnp.nan), gap["mask"].at[:, 1].set(False)
    expected, _, info = step(algorithm, server, cohort)
    actual, _, gap_info = step(algorithm, server, cohort._replace(batches=gap))
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    assert gap_info.client.num_steps == info.client.num_steps == 2


@every
def test_without_a_client_the_server_stays_and_a_bad_client_is_excluded(name):
    """One program for the cohorts with both clients, with one, with none, and with one that is not finite."""
    algorithm, server, _, cohort = setting(name)
    after, rows, info = step(algorithm, server, cohort._replace(ids=jnp.full(2, -1, jnp.int32)))
    chex.assert_trees_all_equal(after, server._replace(round=jnp.int32(1)))
    chex.assert_trees_all_equal(rows, cohort.rows)
    assert info.num_used == 0
    bad = cohort._replace(batches={**cohort.batches, "x": cohort.batches["x"].at[1, 0, 0].set(jnp.inf)})
    after, rows, info = step(algorithm, server, bad)
    alone, _, _ = step(algorithm, server, cohort._replace(ids=jnp.array([0, -1], jnp.int32)))
    chex.assert_trees_all_equal(after, alone)
    chex.assert_trees_all_equal(member(rows, 1), member(cohort.rows, 1))
    assert (info.num_used, info.excluded.tolist()) == (1, [False, True])
    assert np.isfinite(info.client.loss)


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_keeps_the_dtype_of_the_parameters(name, dtype):
    def loss_fn(params, batch, key):
        middle = params["mean"] + params["bias"]
        return jaxfed.masked_mean(jnp.square(batch["x"] - middle), batch["mask"]), ()

    with jax.enable_x64(dtype == jnp.float64):
        options = {"weight_decay": 0.01, "clip_norm": 1.0, "learning_rate_decay": 0.9, "relaxation": 0.1}
        algorithm = ROWS[name].build(loss_fn, **options)
        server = algorithm.init({"mean": jnp.zeros((), dtype), "bias": jnp.zeros((), dtype)}, 3)
        rows = jaxfed.DeviceStore().init(algorithm.init_client(server.params), 2)
        batches = {"x": jnp.ones((2, 2, 4), dtype), "mask": jnp.ones((2, 2, 4), bool)}
        cohort = jaxfed.Cohort(jnp.array([0, 1], jnp.int32), rows, batches)
        if dtype != dealt(name, [jnp.bfloat16, jnp.float16, jnp.float64]):
            after, new_rows, _ = jax.eval_shape(algorithm.step, server, cohort, jax.random.key(0))
        else:
            after, new_rows, _ = step(algorithm, server, cohort)
            assert after.params["mean"] > 0
        chex.assert_trees_all_equal_dtypes((after, new_rows), (server, rows))


@pytest.mark.slow
@every
def test_jit_changes_nothing(name):
    algorithm, server, _, cohort = setting(name)
    plain = algorithm.step(server, cohort, jax.random.key(0))
    chex.assert_trees_all_close(step(algorithm, server, cohort), plain, atol=1e-6)


@every
def test_step_is_its_two_halves_with_weights(name):
    """One client after the other, their messages averaged by hand with the weights, then the server's half."""
    algorithm, server, _, cohort = setting(name, ids=(0, 2, 4))
    weights, key = [0.5, 2.0, 1.5], jax.random.fold_in(jax.random.key(0), 0)
    together, rows, info = step(algorithm, server, cohort._replace(weights=jnp.array(weights)))
    client = jax.jit(algorithm.client_update)
    updates = [client(server, member(cohort, slot), jax.random.fold_in(key, cohort.ids[slot])) for slot in range(3)]
    messages = [update.message for update in updates]
    mean = jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)) / 4.0, *messages)
    total = jax.tree.map(lambda *leaves: sum(leaves), *(message.total for message in messages)) or ()
    halves = algorithm.server_update(server, mean._replace(total=total), jnp.int32(3))
    chex.assert_trees_all_close(together, halves, atol=1e-6)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(update.row for update in updates))
    chex.assert_trees_all_close(rows, stacked, atol=1e-6)
    np.testing.assert_allclose(info.client.loss, np.mean([update.info.loss for update in updates]), rtol=1e-6)


def averaging_loss(params, state, batch, key):
    """The state counts: a quarter for every step, and one for every sample."""
    shift = jnp.broadcast_to(state["shift"], batch["x"].shape)
    loss, aux = problems.loss_fn(params, {**batch, "x": batch["x"] + shift}, key)
    count = jnp.sum(batch["mask"], dtype=jnp.float32)
    return loss, ({"shift": state["shift"] + 0.25, "seen": state["seen"] + count}, aux)


@pytest.mark.parametrize(("name", "policy"), [(name, dealt(name, jaxfed.core.stateful.POLICIES)) for name in NAMES])
def test_model_state_follows_its_policy(name, policy):
    """Two steps of 4 and 3 samples: 0 → 0.5 and 0 → 7."""
    _, plain, _, cohort = setting(name, ids=(0, -1, 2))
    algorithm = ROWS[name].build(jaxfed.Stateful(averaging_loss, policy))
    state = {"shift": jnp.zeros((1, problems.FEATURES)), "seen": jnp.zeros(())}
    server = algorithm.init(plain.params, problems.CLIENTS, state)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(plain.params, state), problems.CLIENTS)
    cohort = cohort._replace(rows=jaxfed.DeviceStore().gather(rows, cohort.ids))
    after, new_rows, _ = step(algorithm, server, cohort)
    moved = {"shift": jnp.full((1, problems.FEATURES), 0.5), "seen": jnp.float32(7)}
    chex.assert_trees_all_close(after.model_state, moved if policy == "average" else state)
    if policy == "local":
        assert new_rows.model_state["seen"].tolist() == [7, 0, 7]
    else:
        assert new_rows.model_state == ()


def mesh_of(size: int) -> jax.sharding.Mesh:
    return jax.make_mesh((size,), ("clients",), devices=jax.devices()[:size])


def plans() -> list[Any]:
    """Sizes that divide eight slots and that do not; meshes with every kind of inner plan."""
    return [
        jaxfed.chunked(2),
        jaxfed.chunked(3),
        jaxfed.map(),
        jaxfed.sharded(mesh_of(2), jaxfed.chunked(3)),
        jaxfed.sharded(mesh_of(4)),
        jaxfed.sharded(mesh_of(8), jaxfed.map()),
    ]


def check_plans(name: str, dtype: type, tolerance: float, chosen: list[Any]) -> None:
    algorithm, server, _, cohort = setting(name, SLOTS, dtype=dtype)
    expected = step(algorithm, server, cohort, jaxfed.vmap())
    used = np.asarray(cohort.ids) >= 0
    for plan in chosen:
        actual = step(algorithm, server, cohort, plan)
        chex.assert_trees_all_close(actual[:2], expected[:2], rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(*(jax.tree.leaves(each[2].clients) for each in (actual, expected)), strict=True):
            np.testing.assert_allclose(ours[used], theirs[used], rtol=10 * tolerance, atol=10 * tolerance)


def some_plans(name: str, first: int) -> list[Any]:
    """Two plans a row, so that four algorithms or more use each plan."""
    at = NAMES.index(name)
    return [plans()[(at + first) % 6], plans()[(at + 1 + at // 6 + first) % 6]]


@every
def test_plans_agree_in_float32(name):
    check_plans(name, np.float32, 1e-5, some_plans(name, 0))


@pytest.mark.slow
@every
def test_plans_agree_in_float64(name):
    """Other two plans of each row."""
    with jax.enable_x64(True):
        check_plans(name, np.float64, 1e-12, some_plans(name, 3))


@pytest.mark.parametrize(("name", "size"), [(name, dealt(name, [2, 4, 8])) for name in NAMES])
def test_shardings_are_kept(name, size):
    """The server on every device, rows spread over them: so they go in, so they come out, and one program serves."""
    mesh = automatic(mesh_of(size))
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("clients"))
    algorithm, server, _, cohort = setting(name, SLOTS)
    server, cohort = jax.device_put(server, everywhere), jax.device_put(cohort, spread)
    sharded = jax.jit(functools.partial(algorithm.step, plan=jaxfed.sharded(mesh)))
    key = jax.device_put(jax.random.key(0), everywhere)
    for _ in range(2):
        server, rows, _ = sharded(server, cohort, key)
        cohort = cohort._replace(rows=rows)
    assert all(leaf.sharding.is_equivalent_to(everywhere, leaf.ndim) for leaf in jax.tree.leaves(server))
    assert all(leaf.sharding.is_equivalent_to(spread, leaf.ndim) for leaf in jax.tree.leaves(rows))
    assert sharded._cache_size() == 1
