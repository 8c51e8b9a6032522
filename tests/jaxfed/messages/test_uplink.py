"""Delta transforms, aggregates and the accountant, each with every algorithm that supports it."""

import dataclasses
import functools
import math

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfed
from jaxfed.algorithms import parts
from jaxfed.core import tree
from jaxfed.core.protocol import ClientMessage, Cohort, CohortResult, ServerUpdate
from jaxfed.messages import compression, privacy, robust
from jaxfed.messages._uplink import Coding, chain, error_feedback, in_memory
from tests.jaxfed.algorithms.test_conformance import COHORTS, ROWS, mesh_of
from tests.support.jaxfed import problems

RUNNING = [name for name in ROWS if ROWS[name].running]
TRANSFORMS = {
    "clip": (privacy.clip(0.3),),
    "clip, noise": (privacy.clip(0.5), privacy.local_noise(privacy.Local(0.5, 0.1, 1e-3))),
    "quantise": (compression.quantise(8),),
    "top_k": (compression.top_k(0.4),),
    "top_k, quantise, clip": (compression.top_k(0.5), compression.quantise(4), privacy.clip(2.0)),
}
AGGREGATES = {
    "median": robust.median(),
    "trimmed_mean": robust.trimmed_mean(0.3),
    "krum": robust.krum(1, selected=3),
    "geometric_median": robust.geometric_median(),
}


@functools.cache
def problem() -> problems.Problem:
    return problems.make_problem(11, np.float32)


def played(algorithm, rounds=14, cohorts=COHORTS):
    """Server, rows of all clients and each round's info, the cohorts in turn; raises if a round is traced twice."""
    chex.clear_trace_counter()
    store, server = jaxfed.DeviceStore(), algorithm.init(problem().params, problems.CLIENTS)
    rows = store.init(algorithm.init_client(problem().params), problems.CLIENTS)
    compiled, infos = jax.jit(chex.assert_max_traces(algorithm.step, n=1)), []
    for number in range(rounds):
        ids = cohorts[number % len(cohorts)]
        index = problems.indices(problem(), number, ids, 3, 4)
        cohort = problems.cohort_of(problem(), ids, index, rows)
        server, new_rows, info = compiled(server, cohort, jax.random.key(0))
        rows = store.scatter(rows, cohort.ids, new_rows)
        infos.append(jax.device_get(info))
    return server, rows, infos


def test_without_transforms_it_is_the_same_algorithm():
    plain_run = played(jaxfed.fedspeed(problems.loss_fn), rounds=3)
    same = played(jaxfed.uplink(jaxfed.fedspeed(problems.loss_fn)), rounds=3)
    chex.assert_trees_all_equal(same, plain_run)


EVERYTHING = "top_k, quantise, clip"
SENT = [(name, each) for name in ("fedspeed", "scaffold") for each in TRANSFORMS]
SENT += [(name, EVERYTHING) for name in RUNNING if (name, EVERYTHING) not in SENT]


@pytest.mark.parametrize(("name", "transforms"), SENT)
def test_running_sum_stays_that_of_the_rows(name, transforms):
    """Rows advance by what the server received, whatever was cut, rounded or added; of clients drawn never as well."""
    algorithm = jaxfed.uplink(ROWS[name].build(problems.loss_fn), *TRANSFORMS[transforms])
    server, rows, _ = played(algorithm)
    kept, memory = ROWS[name].running(server.extra, rows.memory)
    chex.assert_trees_all_close(kept, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), memory), atol=2e-6)
    assert float(tree.norm(kept)) > 1e-3


@pytest.mark.parametrize("name", [name for name in ROWS if name not in RUNNING])
def test_every_other_algorithm_learns_with_compressed_messages(name):
    transforms = TRANSFORMS[EVERYTHING]
    _, _, infos = played(jaxfed.uplink(ROWS[name].build(problems.loss_fn, client_learning_rate=0.2), *transforms))
    losses = [float(info.client.loss) for info in infos]
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:2]), losses


def fed_histogram(loss_fn, reads_samples: bool) -> jaxfed.FederatedAlgorithm:
    """FedAvg whose clients send U as one vector, its norm and, if `reads_samples`, a histogram of labels."""
    solver = parts.Solver(loss_fn, parts.gradients.plain, parts.LocalRule(client_learning_rate=0.2))

    def client(context):
        local = solver(context)
        vector, _ = jax.flatten_util.ravel_pytree(local.delta)
        average = {"drift": tree.norm(local.delta)}
        if reads_samples:
            labels = context.fetch(jax.tree.map(lambda leaf: leaf[0], context.batches))["y"]
            average["histogram"] = jnp.mean(jax.nn.one_hot(labels, problems.CLASSES), axis=0)
        return parts.ClientResult(local, ClientMessage({"vector": vector}, average=average))

    def apply(params, extra, received):
        vector, unravel = jax.flatten_util.ravel_pytree(params)
        return unravel(vector + received.message.delta["vector"]), received.message.average

    def init(params):
        extra = {"drift": jnp.zeros(())}
        return extra | {"histogram": jnp.zeros(problems.CLASSES)} if reads_samples else extra

    return parts.compose(client, ServerUpdate(init, apply), solver)


def simulated(algorithm):
    data = jaxfed.data.client_data(problem().clients)
    server = algorithm.init(problem().params, problems.CLIENTS)
    options = {"batching": jaxfed.Steps(3, 4), "sampler": jaxfed.FixedSize(4), "report": jaxfed.Report(progress=False)}
    return jaxfed.simulate(algorithm, server, data, rounds=8, **options)


@pytest.mark.parametrize("reads_samples", [False, True])
def test_messages_unlike_the_parameters(reads_samples):
    """Clip and quantisation take any structure; top_k too, unless the message needs samples to have a shape."""
    algorithm = fed_histogram(problems.loss_fn, reads_samples)
    whole, _ = simulated(algorithm)
    bare, _ = simulated(jaxfed.fedavg(problems.loss_fn, client_learning_rate=0.2))
    chex.assert_trees_all_close(whole.params, bare.params, atol=1e-6)
    lossless = jaxfed.uplink(algorithm, privacy.clip(1e3), compression.quantise(16))
    server, history = simulated(lossless)
    chex.assert_trees_all_close((server.params, server.extra), (whole.params, whole.extra), atol=1e-2)
    entries = [15, 1] + [problems.CLASSES] * reads_samples
    assert history.rounds["sent_bytes"] == [sum(2 * size + 4 for size in entries)] * 8
    sparse = jaxfed.uplink(algorithm, compression.top_k(1.0), compression.quantise(16), privacy.clip(1e3))
    if reads_samples:
        with pytest.raises(ValueError, match="expected a message whose shapes are known without samples"):
            sparse.init_client(problem().params)
    else:
        server, _ = simulated(sparse)
        chex.assert_trees_all_close((server.params, server.extra), (whole.params, whole.extra), atol=1e-2)


def message_of(*shapes) -> ClientMessage:
    generator = np.random.default_rng(3)
    return ClientMessage([jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes])


def test_clip_bounds_the_norm_of_everything_together():
    message = ClientMessage({"a": jnp.full(9, 2.0)}, average={"a": jnp.full(16, 2.0)})  # norms 6, 8: 10 together
    sent, _ = privacy.clip(1.0).apply(message, (), jax.random.key(0))
    chex.assert_trees_all_close(sent, tree.scale(0.1, message), rtol=1e-6)
    kept, _ = privacy.clip(10.5).apply(message, (), jax.random.key(0))
    chex.assert_trees_all_equal(kept, message)
    nothing, _ = privacy.clip(1.0).apply(tree.scale(0.0, message), (), jax.random.key(0))
    chex.assert_trees_all_equal(nothing, tree.scale(0.0, message))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_entries_are_neighbouring_levels_and_right_on_average(bits):
    message, levels = message_of(50), 2 ** (bits - 1) - 1
    apply = jax.jit(jax.vmap(lambda key: compression.quantise(bits).apply(message, (), key)[0].delta[0]))
    drawn = np.asarray(apply(jax.random.split(jax.random.key(1), 4000)))
    exact = np.asarray(message.delta[0])
    scale = np.abs(exact).max() / levels
    np.testing.assert_allclose(drawn / scale, np.round(drawn / scale), atol=1e-4)
    assert np.abs(drawn - exact).max() <= scale * (1 + 1e-5)
    assert len(np.unique(np.round(drawn / scale))) <= 2 * levels + 1
    mean, deviation = drawn.mean(axis=0, dtype=np.float64), drawn.std(axis=0, dtype=np.float64) / np.sqrt(len(drawn))
    assert np.all(np.abs(mean - exact) < 5 * deviation + 1e-5 * scale)


def test_top_k_keeps_the_largest_of_every_array():
    message = message_of((4, 5), (10,))
    sent, _ = compression.top_k(0.3, feedback=False).apply(message, (), jax.random.key(0))
    for ours, full in zip(sent.delta, message.delta, strict=True):
        flat = np.abs(np.ravel(full))
        kept = flat >= np.sort(flat)[-math.ceil(0.3 * flat.size)]
        np.testing.assert_array_equal(np.ravel(ours), np.where(kept, np.ravel(full), 0))
        assert kept.sum() == math.ceil(0.3 * flat.size)


def test_error_feedback_sends_everything_in_the_end():
    """Σ of what was sent + the residual = Σ of what was to be sent."""
    transform = error_feedback(chain(compression.top_k(0.2, feedback=False), compression.quantise(3)))
    messages = [tree.scale(factor, message_of((4, 5), (10,))) for factor in (1.0, -0.5, 2.0, 0.25)]
    state, sent = transform.init(tree.scale(0.0, messages[0])), []
    for number, message in enumerate(messages):
        received, state = transform.apply(message, state, jax.random.key(number))
        sent.append(received)
    chex.assert_trees_all_close(optax.tree.add(*sent, state[0]), optax.tree.add(*messages), atol=1e-5)


def test_bytes_are_those_of_the_code():
    """100 entries of float32: whole, in eight bits with a scale, ten of them with seven bits for each index, both."""
    leaf = jnp.zeros((10, 10))
    sizes = [
        (400, chain()),
        (400, privacy.clip(1.0)),
        (104, compression.quantise(8)),
        (49, compression.top_k(0.1)),
        (23, chain(compression.top_k(0.1), compression.quantise(8))),
    ]
    for expected, transform in sizes:
        assert transform.coding(in_memory(leaf)).num_bytes == expected
    assert Coding(3, 5, 2, 9).num_bytes == 3
    algorithm = jaxfed.uplink(jaxfed.scaffold(problems.loss_fn), compression.quantise(8))
    _, _, infos = played(algorithm, rounds=1)
    whole = played(jaxfed.scaffold(problems.loss_fn), rounds=1)[2]
    assert whole[0].client.sent_bytes == 2 * 4 * 15
    assert infos[0].client.sent_bytes == 2 * (12 + 3 + 4 + 4)


def result_of(values: np.ndarray, used: list[bool]) -> CohortResult:
    """A gathered result of messages with one quantity each, values [C, D]."""
    messages = ClientMessage({"x": jnp.asarray(values)}, total={"x": jnp.asarray(2 * values)})
    none = ()
    return CohortResult(messages, jnp.float32(sum(used)), none, none, jnp.array(used), jnp.zeros(len(used), bool))


def combined(aggregate, values, used):
    cohort = Cohort(jnp.arange(len(used)), (), {})
    message, kept = aggregate.combine(result_of(values, used), cohort, jax.random.key(0))
    return np.asarray(message.delta["x"]), np.asarray(message.total["x"]), np.asarray(kept)


USED = [[True] * 9, [True, False, True, True, True, True, False, True, True], [True] * 8 + [False]]


@pytest.mark.parametrize("used", USED)
def test_robust_aggregates_against_numpy(used):
    values = np.random.default_rng(7).normal(size=(9, 6)).astype(np.float32)
    there = values[np.array(used)]
    count = len(there)
    middle, total, kept = combined(robust.median(), values, used)
    np.testing.assert_allclose(middle, np.median(there, axis=0), rtol=1e-5)
    np.testing.assert_allclose(total, 2 * count * np.median(there, axis=0), rtol=1e-5)
    assert kept.tolist() == used
    cut = int(0.2 * count)
    trimmed = np.sort(there, axis=0)[cut : count - cut].mean(axis=0)
    np.testing.assert_allclose(combined(robust.trimmed_mean(0.2), values, used)[0], trimmed, rtol=1e-4, atol=1e-6)
    distances = 5 * np.square(there[:, None] - there[None]).sum(-1)  # the total is twice the delta: 1 + 4
    scores = np.sort(distances, axis=1)[:, 1 : count - 2 - 2 + 1].sum(axis=1)
    chosen = np.argsort(scores)[:3]
    result, total, kept = combined(robust.krum(2, selected=3), values, used)
    np.testing.assert_allclose(result, there[chosen].mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total, 2 * there[chosen].sum(axis=0), rtol=1e-4, atol=1e-6)
    assert np.flatnonzero(kept).tolist() == sorted(np.flatnonzero(used)[chosen].tolist())
    point = there.mean(axis=0)
    for _ in range(200):
        weights = 1 / np.linalg.norm(there - point, axis=1)
        point = (weights[:, None] * there).sum(axis=0) / weights.sum()
    result = combined(robust.geometric_median(200), values, used)[0]
    np.testing.assert_allclose(result, point, rtol=1e-3, atol=1e-4)


def test_inconsistency_is_the_spread_of_the_clients_that_krum_selects():
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), aggregate=robust.krum(0, selected=2))
    ids = [0, 1, 2, 4]
    server, rows = algorithm.init(problem().params, problems.CLIENTS), algorithm.init_client(problem().params)
    rows = jaxfed.DeviceStore().init(rows, problems.CLIENTS)
    cohort = problems.cohort_of(problem(), ids, problems.indices(problem(), 0, ids, 3, 4), rows)
    after, _, info = algorithm.step(server, cohort, jax.random.key(0))
    squares = np.square(info.clients.delta_norm[info.used])
    moved = float(tree.norm(optax.tree.sub(after.params, server.params)))
    assert (len(squares), int(info.num_used)) == (2, 2)
    np.testing.assert_allclose(info.inconsistency, squares.mean() - moved**2, rtol=1e-4)
    assert float(info.inconsistency) > 1e-4


def poisoned(algorithm: jaxfed.FederatedAlgorithm, clients: tuple[int, ...]) -> jaxfed.FederatedAlgorithm:
    """Some clients send twenty times the opposite of their result."""

    def client_update(server, member, key, fetch=lambda batch: batch):
        update = algorithm.client_update(server, member, key, fetch)
        factor = jnp.where(jnp.isin(member.ids, jnp.array(clients)), -20.0, 1.0)
        return update._replace(message=tree.scale(factor, update.message))

    return algorithm._replace(client_update=client_update)


def last_loss(algorithm) -> float:
    """Mean loss of the three honest clients' own samples after twelve rounds of all five."""
    server, _, _ = played(algorithm, 12, [[0, 1, 2, 3, 4, -1, -1]])
    samples = [problem().clients[client] for client in (0, 2, 4)]
    batches = [{**each, "mask": np.ones(len(each["y"]), bool)} for each in samples]
    return float(np.mean([problems.loss_fn(server.params, batch, None)[0] for batch in batches]))


@pytest.fixture(scope="module")
def honest() -> float:
    start = jaxfed.fedavg(problems.loss_fn, client_learning_rate=0.2)
    return last_loss(start)


ATTACKED = {  # the aggregate, and who is poisoned of five: Krum for two would need seven
    "median": (robust.median(), (1, 3)),
    "trimmed_mean": (robust.trimmed_mean(0.4), (1, 3)),
    "krum": (robust.krum(1, selected=2), (1,)),
    "geometric_median": (robust.geometric_median(), (1, 3)),
}


@pytest.mark.parametrize("name", ATTACKED)
def test_robust_aggregates_withstand_poisoned_clients(name, honest):
    aggregate, liars = ATTACKED[name]
    attacked = poisoned(jaxfed.fedavg(problems.loss_fn, client_learning_rate=0.2), liars)
    assert last_loss(jaxfed.uplink(attacked, aggregate=aggregate)) < honest + 0.25


def test_the_mean_does_not_withstand_them(honest):
    attacked = poisoned(jaxfed.fedavg(problems.loss_fn, client_learning_rate=0.2), (1, 3))
    assert not last_loss(jaxfed.uplink(attacked)) < honest + 2.0


MET = [("fedspeed", each) for each in AGGREGATES]
MET += zip(["scaffold", "fedsmoo", "fedcm"], AGGREGATES, strict=False)


@pytest.mark.parametrize(("name", "aggregate"), MET)
def test_robust_aggregates_learn_with_other_algorithms(name, aggregate):
    built = ROWS[name].build(problems.loss_fn, client_learning_rate=0.1)
    algorithm = jaxfed.uplink(built, aggregate=AGGREGATES[aggregate])
    _, _, infos = played(algorithm, 14, [[0, 1, 2, 3, 4, -1, -1]])
    losses = [float(info.client.loss) for info in infos]
    assert np.mean(losses[-3:]) < 0.95 * losses[0], losses


def test_krum_leaves_rows_and_running_sum_of_others_alone():
    algorithm = jaxfed.uplink(jaxfed.scaffold(problems.loss_fn), aggregate=robust.krum(1, selected=2))
    server, rows, infos = played(algorithm, 6, [[0, 1, 2, 3, 4]])
    chex.assert_trees_all_close(server.extra, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), rows.memory), atol=1e-6)
    assert [info.num_used for info in infos] == [2] * 6
    assert float(tree.norm(server.extra)) > 1e-3


@pytest.mark.parametrize("aggregate", ["krum", "geometric_median"])
def test_plans_agree_where_messages_are_gathered(aggregate):
    built = jaxfed.fedspeed(problems.loss_fn)
    algorithm = jaxfed.uplink(built, compression.top_k(0.5), aggregate=AGGREGATES[aggregate])
    server = algorithm.init(problem().params, problems.CLIENTS)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem().params), problems.CLIENTS)
    ids = [0, 3, -1, 1, 4, 2, -1, -1]
    cohort = problems.cohort_of(problem(), ids, problems.indices(problem(), 0, ids, 2, 4), rows)
    plans = [jaxfed.vmap(), jaxfed.chunked(3), jaxfed.sharded(mesh_of(4), jaxfed.map())]
    ends = [jax.jit(functools.partial(algorithm.step, plan=plan))(server, cohort, jax.random.key(0)) for plan in plans]
    for each in ends[1:]:
        chex.assert_trees_all_close(each[:2], ends[0][:2], atol=2e-6)
        chex.assert_trees_all_equal(each[2].used, ends[0][2].used)


def test_a_client_that_is_not_finite_is_left_out_of_a_median():
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), aggregate=robust.median())
    server = algorithm.init(problem().params, problems.CLIENTS)
    rows = algorithm.init_client(problem().params)
    ids = [0, 1, 2, 4]
    cohort = problems.cohort_of(problem(), ids, problems.indices(problem(), 0, ids, 2, 4), rows)
    bad = cohort._replace(batches={**cohort.batches, "x": cohort.batches["x"].at[1, 0, 0].set(jnp.inf)})
    step = jax.jit(algorithm.step)
    after, _, info = step(server, bad, jax.random.key(0))
    without, _, _ = step(server, cohort._replace(ids=jnp.array([0, -1, 2, 4], jnp.int32)), jax.random.key(0))
    chex.assert_trees_all_equal(after, without)
    assert info.excluded.tolist() == [False, True, False, False]


def central(max_norm: float, multiplier: float, cohort_size: int = 4) -> privacy.Central:
    return privacy.Central(max_norm, multiplier, jaxfed.FixedSize(cohort_size), 100, 1e-3)


def test_central_noise_is_that_of_the_mean():
    """Without noise the plain sum over a constant; with it, its deviation is z·C/n in every entry."""
    sums = ClientMessage({"x": jnp.ones(3)}, total={"x": jnp.full(20_000, 4.0)})
    used = jnp.array([True, True, False])
    result = CohortResult(sums, jnp.float32(2), (), (), used, ~used)
    cohort = Cohort(jnp.arange(3), (), {})
    exact, kept = privacy.central_noise(central(0.5, 0.0)).combine(result, cohort, jax.random.key(0))
    chex.assert_trees_all_close((exact.delta["x"], exact.total["x"][:1]), (jnp.full(3, 0.25), jnp.array([4.0])))
    assert kept.tolist() == used.tolist()
    noisy, _ = privacy.central_noise(central(0.5, 3.0)).combine(result, cohort, jax.random.key(0))
    drawn = np.asarray(noisy.total["x"]) - 4.0
    assert abs(drawn.std() - 1.5) < 0.05
    assert abs(drawn.mean()) < 0.05
    mean = ClientMessage({"x": jnp.zeros(20_000)})
    noisy, _ = privacy.central_noise(central(0.5, 3.0)).combine(
        result._replace(message=mean), cohort, jax.random.key(1)
    )
    assert abs(np.asarray(noisy.delta["x"]).std() - 0.375) < 0.01
    local, _ = privacy.local_noise(privacy.Local(0.5, 3.0, 1e-3)).apply(mean, (), jax.random.key(2))
    assert abs(np.asarray(local.delta["x"]).std() - 1.5) < 0.05


def test_noise_differs_by_round_and_client_and_not_by_plan():
    algorithm = jaxfed.uplink(
        jaxfed.fedspeed(problems.loss_fn, dual_mean="cohort"),
        privacy.clip(0.1),
        privacy.local_noise(privacy.Local(0.1, 0.01, 1e-3)),
        aggregate=privacy.central_noise(central(0.1, 1.0, 2)),
    )
    server = algorithm.init(problem().params, problems.CLIENTS)
    ids = [0, 3]
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem().params), problems.CLIENTS)
    cohort = problems.cohort_of(problem(), ids, problems.indices(problem(), 0, ids, 2, 4), rows)
    step = jax.jit(algorithm.step, static_argnames="plan")
    first, _, _ = step(server, cohort, jax.random.key(0), plan=jaxfed.vmap())
    other, _, _ = step(server, cohort, jax.random.key(0), plan=jaxfed.map())
    later, _, _ = step(server._replace(round=jnp.int32(1)), cohort, jax.random.key(0), plan=jaxfed.vmap())
    chex.assert_trees_all_close(first, other, atol=1e-6)
    assert float(tree.norm(optax.tree.sub(first.params, later.params))) > 1e-2


def test_epsilon_of_one_full_round_is_the_gaussian_mechanism():
    """δ(ε) = Φ(1/2z − εz) − e^ε·Φ(−1/2z − εz) (Balle and Wang 2018, Theorem 8)."""
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

    def normal(value):
        return 0.5 * (1 + math.erf(value / math.sqrt(2)))

    for multiplier in (0.8, 2.0):
        result = privacy.epsilon(privacy.Central(1.0, multiplier, jaxfed.CoinFlips(1.0), 100, 1e-5), 1)
        e = result.epsilon
        half = 1 / (2 * multiplier)
        exact = normal(half - e * multiplier) - math.exp(e) * normal(-half - e * multiplier)
        assert abs(exact - 1e-5) < 2e-7
    assert "Poisson" in str(result)
    assert "added or removed" in str(result)


def test_the_accountant_in_both_directions():
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    poisson, local = privacy.Central(0.5, 1.0, jaxfed.CoinFlips(0.1), 100, 1e-3), privacy.Local(0.5, 4.0, 1e-3)
    enough = privacy.noise_for(8.0, poisson, 30, tolerance=0.05)
    assert dataclasses.replace(enough, noise_multiplier=1.0) == poisson
    result = privacy.epsilon(enough, 30)
    assert 7.0 < result.epsilon <= 8.0
    oftener, fixed = (dataclasses.replace(enough, sampler=s) for s in (jaxfed.CoinFlips(0.2), jaxfed.FixedSize(10)))
    assert privacy.epsilon(oftener, 30).epsilon > result.epsilon
    assert privacy.epsilon(fixed, 30).epsilon > result.epsilon
    assert privacy.epsilon(fixed, 30).neighbours == "one client replaced"
    assert privacy.epsilon(local, 2).epsilon > privacy.epsilon(local, 1).epsilon
    assert privacy.epsilon(privacy.noise_for(3.0, local, 2, tolerance=0.1), 2).epsilon <= 3.0
    assert privacy.epsilon(poisson, 0).epsilon == 0.0


def stateful_loss(params, model_state, batch, key):
    loss, aux = problems.loss_fn(params, batch, key)
    return loss, (model_state, aux)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: privacy.clip(0.0), "max_norm must be a finite number > 0"),
        (lambda: compression.quantise(1), "bits must be a finite number ≥ 2"),
        (lambda: compression.top_k(1.5), "fraction must be"),
        (lambda: robust.trimmed_mean(0.5), "fraction must be"),
        (lambda: robust.krum(-1), "poisoned must be"),
        (lambda: privacy.Central(1.0, -1.0, jaxfed.CoinFlips(0.1), 100, 1e-3), "noise_multiplier must be"),
        (lambda: privacy.Central(1.0, 1.0, jaxfed.CoinFlips(0.1), 100, 0.5), "delta must be"),
        (lambda: privacy.Central(1.0, 1.0, object(), 100, 1e-3), "expected CoinFlips or FixedSize"),
        (lambda: privacy.Central(1.0, 1.0, jaxfed.FixedSize(101), 100, 1e-3), "larger than the population"),
        (lambda: privacy.Local(1.0, 0.0, 1e-3), "noise_multiplier must be"),
        (
            lambda: jaxfed.uplink(jaxfed.fedavg(problems.loss_fn)._replace(parts=None)),
            "jaxfed.algorithms.parts.compose",
        ),
        (lambda: jaxfed.uplink(jaxfed.fedavg(jaxfed.Stateful(stateful_loss)), privacy.clip(1.0)), "no model state"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_refusals_of_a_cohort():
    ids, row = [0, 1], jaxfed.fedavg(problems.loss_fn).init_client(problem().params)
    cohort = problems.cohort_of(problem(), ids, problems.indices(problem(), 0, ids, 2, 4), row)
    server = jaxfed.fedavg(problems.loss_fn).init(problem().params, problems.CLIENTS)
    krum = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), aggregate=robust.krum(1))
    with pytest.raises(ValueError, match="expected 5 slots or more"):
        krum.step(server, cohort, jax.random.key(0))
    noise = privacy.central_noise(central(1.0, 1.0, 2))
    noisy = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), privacy.clip(1.0), aggregate=noise)
    rows = cohort.rows._replace(uplink=((), ((),)))
    with pytest.raises(ValueError, match="equal weights"):
        noisy.step(server, cohort._replace(weights=jnp.ones(2), rows=rows), jax.random.key(0))


def test_a_run_resumes_with_its_residuals_and_refuses_other_transforms(tmp_path):
    def run(rounds, *transforms, directory=None):
        algorithm = jaxfed.uplink(jaxfed.scaffold(problems.loss_fn), *transforms)
        server = algorithm.init(problem().params, problems.CLIENTS)
        data = jaxfed.data.client_data(problem().clients)
        return jaxfed.simulate(
            algorithm,
            server,
            data,
            rounds=rounds,
            sampler=jaxfed.FixedSize(2),
            batching=jaxfed.Steps(2, 4),
            report=jaxfed.Report(progress=False),
            checkpoint=directory,
        )

    sparse = compression.top_k(0.3)
    whole, history = run(4, sparse)
    run(2, sparse, directory=tmp_path)
    resumed, _ = run(4, sparse, directory=tmp_path)
    chex.assert_trees_all_equal(resumed, whole)
    assert history.rounds["sent_bytes"] == [2 * (4 * 4 + 2 + 1 * 4 + 1)] * 4
    with pytest.raises(ValueError, match="uplink"):
        run(5, compression.quantise(8), directory=tmp_path)
