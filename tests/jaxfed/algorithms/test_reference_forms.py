"""All eleven algorithms against the NumPy oracle of their reference form, over a covering array of the options."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.algorithms.parts import LocalOptions
from tests.support import fedspeed_reference
from tests.support.jaxfed import problems, reference_forms

TOLERANCE = 1e-11
BATCH, EPOCHS = 4, 2
COHORTS = [[0, 3], [1, 2, 4], [2], [3, 0, 1], [4, 0]]
GRADIENT = fedspeed_reference.softmax_regression_gradient(problems.CLASSES)

# Our name of each symbol of the oracle; each factory gets those that it has.
NAMES = {
    "eta": "client_learning_rate",
    "decay": "learning_rate_decay",
    "wd": "weight_decay",
    "beta": "relaxation",
    "lamb": "prox_weight",
    "rho": "ascent_radius",
    "alpha": "momentum_weight",
    "eta_g": "server_learning_rate",
    "beta1": "b1",
    "beta2": "b2",
    "epsilon": "eps",
    "K": "nominal_steps",
}
COMMON = {"client_learning_rate", "learning_rate_decay", "weight_decay", "relaxation"}
TAKES = {
    "fedadam": {"server_learning_rate", "b1", "b2", "eps"},
    "fedavg": {"server_learning_rate"},
    "fedcm": {"momentum_weight", "server_learning_rate", "nominal_steps"},
    "feddyn": {"prox_weight"},
    "fedgamma": {"ascent_radius", "server_learning_rate", "nominal_steps"},
    "fedprox": {"prox_weight", "server_learning_rate"},
    "fedsam": {"ascent_radius", "server_learning_rate"},
    "fedsmoo": {"prox_weight", "ascent_radius"},
    "fedspeed": {"prox_weight", "ascent_radius"},
    "mofedsam": {"ascent_radius", "momentum_weight", "server_learning_rate", "nominal_steps"},
    "scaffold": {"server_learning_rate", "nominal_steps"},
}
BASE = {"eta": 0.1, "decay": 0.998, "wd": 1e-3, "eta_g": 1.0}
ALT = {
    "eta": 0.07,
    "decay": 0.9,
    "wd": 0.03,
    "lamb": 0.35,
    "rho": 0.23,
    "alpha": 0.4,
    "eta_g": 0.6,
    "beta1": 0.7,
    "beta2": 0.8,
    "epsilon": 0.05,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the covering array."""

    alt: bool
    relaxed: bool
    partial: bool
    clipped: bool
    nominal: bool


# Every pair of values of any two options is in some row.
ROWS = {
    "base": Setting(alt=False, relaxed=False, partial=False, clipped=False, nominal=True),
    "everything": Setting(alt=True, relaxed=True, partial=True, clipped=True, nominal=True),
    "alt_own": Setting(alt=True, relaxed=False, partial=False, clipped=True, nominal=False),
    "ri_own": Setting(alt=False, relaxed=True, partial=False, clipped=True, nominal=False),
    "partial_own": Setting(alt=False, relaxed=False, partial=True, clipped=True, nominal=False),
    "alt_ri_partial": Setting(alt=True, relaxed=True, partial=True, clipped=False, nominal=False),
    "clip": Setting(alt=False, relaxed=False, partial=False, clipped=True, nominal=True),
}
CASES = [
    pytest.param(name, row, id=f"{name}-{row}", marks=[] if row == "everything" else [pytest.mark.slow])
    for name in sorted(TAKES)
    for row in ROWS
]


def test_rows_cover_every_pair():
    values = [dataclasses.astuple(row) for row in ROWS.values()]
    for first in range(5):
        for second in range(first):
            assert len({(row[first], row[second]) for row in values}) == 4, (first, second)


def hyperparameters(setting: Setting, problem: problems.Problem) -> reference_forms.ReferenceHyperparameters:
    nominal = EPOCHS * len(problem.clients[0]["x"]) / BATCH + 0.25 if setting.nominal else None
    return reference_forms.ReferenceHyperparameters(
        **(ALT if setting.alt else BASE),
        beta=0.15 if setting.relaxed else 0.0,
        max_norm=0.3 if setting.clipped else 10.0,
        K=nominal,
    )


def build(name: str, hyper: reference_forms.ReferenceHyperparameters, **options) -> jaxfed.FederatedAlgorithm:
    arguments = {ours: getattr(hyper, theirs) for theirs, ours in NAMES.items() if ours in TAKES[name] | COMMON}
    return jaxfed.algorithms.get(name)(problems.loss_fn, **{"clip_norm": hyper.max_norm, **arguments, **options})


def visits(problem: problems.Problem, number: int, ids: list[int], partial: bool) -> np.ndarray:
    """Sample numbers [C, K, B], −1 where absent; partial: all samples per epoch, so K and the last batch differ."""
    generator = np.random.default_rng(number)
    index = np.full((len(ids), 8, BATCH), -1)
    for slot, client in enumerate(ids):
        count, at = len(problem.clients[client]["x"]), 0
        for _ in range(EPOCHS):
            order = generator.permutation(count)[: None if partial else BATCH]
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                index[slot, at, : len(batch)] = batch
                at += 1
    return index


def replay(name: str, setting: Setting, **options):
    """Both runs in step; yields after every round (server, rows, oracle)."""
    problem = problems.make_problem(20)
    hyper = hyperparameters(setting, problem)
    algorithm, store = build(name, hyper, **options), jaxfed.DeviceStore()
    step = jax.jit(algorithm.step)
    server = algorithm.init(problem.params, problems.CLIENTS)
    rows = store.init(algorithm.init_client(problem.params), problems.CLIENTS)
    oracle = reference_forms.ReferenceRun(name, GRADIENT, problems.flat(problem.params), problems.CLIENTS, hyper)
    for number, ids in enumerate(COHORTS):
        index = visits(problem, number, ids, setting.partial)
        oracle.round(problems.oracle_cohort(problem, ids, index))
        slots = 3 - len(ids)
        padded = ids + [-1] * slots
        index = np.concatenate([index, np.full((slots, *index.shape[1:]), -1)])
        server, new_rows, _ = step(server, problems.cohort_of(problem, padded, index, rows), jax.random.key(0))
        rows = store.scatter(rows, jnp.asarray(padded, jnp.int32), new_rows)
        yield server, rows, oracle


def assert_close(actual, expected, what: str) -> None:
    np.testing.assert_allclose(problems.flat(actual), expected, rtol=0, atol=TOLERANCE, err_msg=what)


def held_by_server(name: str, extra, oracle: reference_forms.ReferenceRun) -> dict:
    """What the server keeps in addition to the parameters, ours and the oracle's."""
    match name:
        case "fedadam":
            return {"m": (jax.tree.map(jnp.negative, extra[0].mu), oracle.m), "v": (extra[0].nu, oracle.v)}
        case "scaffold" | "fedgamma":
            return {"c": (extra, oracle.c)}
        case "fedcm" | "mofedsam":
            return {"D": (extra, oracle.D)}
        case "fedsmoo":
            return {"s": (extra.ascent, oracle.s), "mean h": (extra.dual_mean, np.mean(oracle.h, axis=0))}
        case "fedspeed" | "feddyn":
            return {"mean h": (extra, np.mean(oracle.h, axis=0))}
    assert extra == ()
    return {}


def held_by_client(name: str, memory, oracle: reference_forms.ReferenceRun, client: int) -> dict:
    match name:
        case "scaffold" | "fedgamma":
            return {"c_i": (memory, oracle.c_i[client])}
        case "fedsmoo":
            return {"h": (memory.params, oracle.h[client]), "mu": (memory.ascent, oracle.mu[client])}
        case "fedspeed" | "feddyn":
            return {"h": (memory, oracle.h[client])}
    assert memory == ()
    return {}


def assert_same(name: str, server: jaxfed.Server, rows: jaxfed.ClientRow, oracle: reference_forms.ReferenceRun) -> None:
    assert_close(server.params, oracle.x, f"x after round {oracle.t}")
    for what, pair in held_by_server(name, server.extra, oracle).items():
        assert_close(*pair, f"{what} after round {oracle.t}")
    rows = jax.device_get(rows)
    for client in range(problems.CLIENTS):
        row = jax.tree.map(lambda leaf, client=client: leaf[client], rows)
        for what, pair in held_by_client(name, row.memory, oracle, client).items():
            assert_close(*pair, f"{what} of client {client} after round {oracle.t}")
        if row.last_params != ():
            assert_close(row.last_params, oracle.w[client], f"last parameters of client {client}")


@pytest.mark.parametrize(("name", "row"), CASES)
def test_reference_form_replays_from_the_equations(name, row):
    with jax.enable_x64(True):
        for server, rows, oracle in replay(name, ROWS[row], variant="reference"):
            assert_same(name, server, rows, oracle)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TAKES))
def test_without_a_clip_both_variants_are_the_same_equations(name):
    with jax.enable_x64(True):
        for server, rows, oracle in replay(name, ROWS["alt_ri_partial"], variant="paper", clip_norm=None):
            assert_same(name, server, rows, oracle)


@pytest.mark.parametrize("row", ["everything", "alt_own"])
def test_the_clip_of_the_oracle_binds(row):
    """Otherwise the rows with a clip would show nothing."""
    problem = problems.make_problem(20)
    hyper = hyperparameters(ROWS[row], problem)
    ends = []
    for max_norm in (hyper.max_norm, np.inf):
        other = dataclasses.replace(hyper, max_norm=max_norm)
        run = reference_forms.ReferenceRun("fedavg", GRADIENT, problems.flat(problem.params), problems.CLIENTS, other)
        index = visits(problem, 0, COHORTS[0], partial=True)
        ends.append(run.round(problems.oracle_cohort(problem, COHORTS[0], index)))
    assert np.linalg.norm(ends[0] - ends[1]) > 1e-3


@pytest.mark.parametrize("name", sorted(TAKES))
def test_every_symbol_of_the_equations_is_an_option(name):
    """A factory has the arguments of the table, and none of the other symbols.

    Dual algorithms also have a server rate, which the authors' program has for others only.
    """
    own = set(inspect.signature(jaxfed.algorithms.get(name)).parameters)
    takes = own | set(LocalOptions.__annotations__)
    if name in ("feddyn", "fedsmoo", "fedspeed"):
        takes -= {"server_learning_rate"}
    assert TAKES[name] | COMMON == takes & set(NAMES.values())
