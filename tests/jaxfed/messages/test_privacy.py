"""What noise presumes holds: order of transforms, one clip, one sampling, noise that nobody can subtract, wide sums."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.cli._options import Rounds
from jaxfed.cli._sending import Sending, mechanism, sampler_of, with_sending
from jaxfed.core import tree
from jaxfed.core.protocol import ClientInfo, ClientMessage, ClientUpdate, Cohort, CohortResult
from jaxfed.layout import plans
from jaxfed.messages import compression, privacy, robust
from jaxfed.messages._uplink import Transform, chain, check_cohorts, error_feedback, in_memory
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

CENTRAL = privacy.Central(0.5, 1.0, jaxfed.CoinFlips(0.1), 100, 1e-3)
LOCAL = privacy.Local(0.5, 1.0, 1e-3)
NOISE = privacy.central_noise(CENTRAL)
CLIP, OTHER = privacy.clip(0.5), privacy.clip(1.0)
OWN = Transform(lambda message: (), lambda message, state, key: (message, state), name="own")


def fedavg() -> jaxfed.FederatedAlgorithm:
    return jaxfed.fedavg(problems.loss_fn)


def message_of(*shapes, dtype="float32", norm=30.0) -> ClientMessage:
    generator = np.random.default_rng(3)
    drawn = [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]
    return ClientMessage([leaf.astype(dtype) for leaf in tree.scale(norm / float(tree.norm(drawn)), drawn)])


def sent_by(transforms, message, rounds=1):
    """What the server receives, round by round, of a client that wants to send the same every time."""
    whole = chain(*transforms)
    state, sent = whole.init(tree.scale(0.0, message)), []
    for number in range(rounds):
        received, state = whole.apply(message, state, jax.random.key(number))
        sent.append(received)
    return sent, state


COMPRESSED = {
    "top_k": (compression.top_k(0.01),),
    "quantise": (compression.quantise(2),),
    "both": (compression.top_k(0.1), compression.quantise(2)),
    "clipped before": (CLIP, compression.top_k(0.01), compression.quantise(4)),
    "residual of all": (error_feedback(chain(compression.top_k(0.1, feedback=False), CLIP)),),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_no_message_is_longer_than_the_clip(name, dtype):
    """Measured on what arrives, over many rounds: residuals of top-k pile up, two bits are up to twice as long."""
    message = message_of((40, 25), (7,), (0, 3), dtype=dtype, norm=0.5)
    sent, _ = sent_by((*COMPRESSED[name], CLIP), message, 40)
    norms = [float(np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in each.delta))) for each in sent]
    assert max(norms) <= 0.5 * (1 + 1e-6)
    assert max(norms) > 0.45
    unclipped, _ = sent_by(COMPRESSED[name], message, 40)
    assert name == "residual of all" or max(float(tree.norm(each)) for each in unclipped) > 0.6


def test_a_residual_before_the_clip_stays_bounded():
    """What top-k left out is kept, what the clip cut off is not: it could never be sent."""
    message = message_of((40, 25), norm=30.0)
    _, (state, _) = sent_by((compression.top_k(0.3), CLIP), message, 60)
    assert float(tree.norm(state[0])) < 10 * 30.0
    _, (inside,) = sent_by((error_feedback(chain(compression.top_k(0.3, feedback=False), CLIP)),), message, 60)
    assert float(tree.norm(inside[0])) > 50 * 30.0


TAKEN = {
    "clip": lambda: jaxfed.uplink(fedavg(), CLIP, aggregate=NOISE),
    "top-k, quantise, clip": lambda: jaxfed.uplink(fedavg(), *COMPRESSED["both"], CLIP, aggregate=NOISE),
    "two clips": lambda: jaxfed.uplink(fedavg(), OTHER, CLIP, aggregate=NOISE),
    "clip beneath": lambda: jaxfed.uplink(jaxfed.uplink(fedavg(), CLIP), aggregate=NOISE),
    "residual of all": lambda: jaxfed.uplink(fedavg(), error_feedback(chain(OWN, CLIP)), aggregate=NOISE),
    "local and central": lambda: jaxfed.uplink(fedavg(), CLIP, privacy.local_noise(LOCAL), aggregate=NOISE),
    "rounded noise": lambda: jaxfed.uplink(fedavg(), CLIP, privacy.local_noise(LOCAL), compression.quantise(4)),
}
REFUSED = {
    "no clip": (
        lambda: jaxfed.uplink(fedavg(), aggregate=NOISE),
        "got messages without a bound of their norm; clip after",
    ),
    "another clip": (lambda: jaxfed.uplink(fedavg(), OTHER, aggregate=NOISE), r"expected privacy.clip\(0.5\) last"),
    "shorter clip": (lambda: jaxfed.uplink(fedavg(), privacy.clip(0.1), aggregate=NOISE), "got a clip to 0.1"),
    "top-k after": (
        lambda: jaxfed.uplink(fedavg(), CLIP, compression.top_k(0.1), aggregate=NOISE),
        "bound of their norm after clip",
    ),
    "sparse after": (
        lambda: jaxfed.uplink(fedavg(), CLIP, compression.top_k(0.1, feedback=False), aggregate=NOISE),
        "without a bound",
    ),
    "bits after": (lambda: jaxfed.uplink(fedavg(), CLIP, compression.quantise(8), aggregate=NOISE), "without a bound"),
    "own after": (lambda: jaxfed.uplink(fedavg(), CLIP, OWN, aggregate=NOISE), "without a bound"),
    "residual after": (
        lambda: jaxfed.uplink(fedavg(), error_feedback(chain(CLIP, OWN)), aggregate=NOISE),
        "without a bound",
    ),
    "around": (lambda: jaxfed.uplink(jaxfed.uplink(fedavg(), CLIP, aggregate=NOISE), OWN), "without a bound"),
    "noise around": (lambda: jaxfed.uplink(jaxfed.uplink(fedavg(), CLIP, OWN), aggregate=NOISE), "without a bound"),
    "local, no clip": (lambda: jaxfed.uplink(fedavg(), privacy.local_noise(LOCAL)), "before local_noise"),
    "local, other": (lambda: jaxfed.uplink(fedavg(), OTHER, privacy.local_noise(LOCAL)), "got a clip to 1.0"),
    "local, bits": (lambda: jaxfed.uplink(fedavg(), CLIP, OWN, privacy.local_noise(LOCAL)), "without a bound"),
    "local, nested": (lambda: jaxfed.uplink(fedavg(), error_feedback(privacy.local_noise(LOCAL))), "without a bound"),
    "bits of noise": (
        lambda: jaxfed.uplink(fedavg(), CLIP, privacy.local_noise(LOCAL), compression.quantise(4), aggregate=NOISE),
        "without a bound",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_orders_that_noise_covers_are_taken(name):
    assert TAKEN[name]().parts.max_norm in (0.5, None)


@pytest.mark.parametrize("name", REFUSED)
def test_orders_that_noise_does_not_cover_are_refused_at_construction(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("sampler", "clients", "message"),
    [
        (jaxfed.CoinFlips(0.2), 100, r"CoinFlips\(participation=0.1, .* of 100 clients, got CoinFlips"),
        (jaxfed.FixedSize(10), 100, "got FixedSize"),
        (jaxfed.CoinFlips(0.1), 50, "of 50; use the same in both"),
        (jaxfed.CoinFlips(0.1, weights="samples"), 100, "equal weights"),
    ],
)
def test_a_run_with_other_cohorts_than_the_noise_is_refused(sampler, clients, message):
    algorithm = jaxfed.uplink(fedavg(), CLIP, aggregate=NOISE)
    data = jaxfed.data.client_data([problems.make_problem(1, np.float32).clients[0]] * clients)
    server = algorithm.init(problems.make_problem(1, np.float32).params, clients)
    options = {"rounds": 1, "batching": jaxfed.Steps(1, 2)}
    with pytest.raises(ValueError, match=message):
        jaxfed.simulate(algorithm, server, data, sampler=sampler, **arguments(**options))
    check_cohorts(algorithm, CENTRAL.sampler, 100, weighted=False)


def test_one_value_holds_what_noise_and_epsilon_agree_in():
    assert CENTRAL.expected_clients == 10
    assert dataclasses.replace(CENTRAL, sampler=jaxfed.FixedSize(7)).expected_clients == 7
    assert NOISE.name == "central_noise(0.5, 1.0, 10.0)"
    assert NOISE.noise is CENTRAL


def test_the_command_line_clips_last_and_draws_as_the_noise_presumes():
    schedule, sending = Rounds(clients=32, cohort_size=8), Sending(0.5, 1.0, bits=2, top_k=0.1)
    algorithm = with_sending(fedavg(), sending, schedule)
    assert algorithm.hyperparameters["uplink"].endswith("quantise(bits=2), clip(0.5)")
    assert algorithm.parts.aggregate.noise == mechanism(sending, schedule)
    check_cohorts(algorithm, sampler_of(sending, schedule), schedule.clients, weighted=False)


def test_noise_for_ends():
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    with pytest.raises(ValueError, match="tolerance must be a finite number > 0"):
        privacy.noise_for(8.0, CENTRAL, 10, tolerance=0.0)
    with pytest.raises(ValueError, match="expected a target_epsilon that noise reaches"):
        privacy.noise_for(1e-9, dataclasses.replace(LOCAL, delta=1e-30), 1)
    assert 0.05 <= privacy.noise_for(0.5, LOCAL, 0, tolerance=1e-300).noise_multiplier < 0.06


def test_transforms_around_transforms_draw_anew():
    """Twice the same noise would be one noise, twice as large."""
    noise = (CLIP, privacy.local_noise(dataclasses.replace(LOCAL, noise_multiplier=100.0)))
    once, twice = jaxfed.uplink(fedavg(), *noise), jaxfed.uplink(jaxfed.uplink(fedavg(), *noise), *noise)
    problem = problems.make_problem(11, np.float32)
    index = problems.indices(problem, 0, [0], 1, 4)

    def drawn(algorithm, key, **more):
        server = algorithm.init(problem.params, 5)
        rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params), 5)
        member = jax.tree.map(lambda leaf: leaf[0], problems.cohort_of(problem, [0], index, rows))
        return jax.jit(algorithm.client_update)(server, member, key, **more).message.delta

    first, second, other = (
        np.concatenate([problems.flat(drawn(each, jax.random.key(k))) for k in range(8)])
        for each in (once, twice, once)
    )
    np.testing.assert_array_equal(first, other)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.4
    hidden = [problems.flat(drawn(twice, jax.random.key(0), noise_key=jax.random.key(k))) for k in (1, 2)]
    assert np.abs(hidden[0] - hidden[1]).min() > 1e-4


EMPTY = {"a": (4, 3), "none": (0, 5), "b": ()}
EVERYWHERE = {
    "clip": (CLIP,),
    "noise": (CLIP, privacy.local_noise(LOCAL)),
    "quantise": (compression.quantise(3),),
    "top_k": (compression.top_k(0.5),),
    "all": (compression.top_k(0.5), compression.quantise(3), CLIP),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_leaf_without_entries_passes_every_transform(name):
    message = ClientMessage({leaf: jnp.ones(shape) for leaf, shape in EMPTY.items()})
    (sent,), _ = sent_by(EVERYWHERE[name], message)
    chex.assert_trees_all_equal_shapes_and_dtypes(sent, message)
    assert tree.all_finite(sent)
    assert chain(*EVERYWHERE[name]).coding(in_memory(message.delta["none"])).num_bytes == 0


LEAST = {
    "median": (robust.median(), 1),
    "trimmed": (robust.trimmed_mean(0.2), 3),
    "none": (robust.trimmed_mean(0.0), 1),
}
LEAST |= {"krum": (robust.krum(1, selected=2), 5), "wide": (robust.krum(0, selected=4), 4)}
LEAST |= {"geometric": (robust.geometric_median(), 1)}


@pytest.mark.parametrize("name", LEAST)
def test_robust_aggregates_count_clients_not_slots(name):
    """Of nine slots any number is used, also single ones in late slots; the others hold NaN."""
    aggregate, least = LEAST[name]
    assert aggregate.least == least
    combine = jax.jit(lambda result: aggregate.combine(result, Cohort(jnp.arange(9), (), {}), jax.random.key(0)))
    values = np.random.default_rng(5).normal(size=(9, 3)).astype(np.float32)
    for used in ([], [0], [6], [3, 8], [2, 4, 8], [1, 4, 5, 7], [2, 3, 5, 7, 8]):
        mask = np.isin(np.arange(9), used)
        there = ClientMessage({"x": np.where(mask[:, None], values, np.nan), "none": np.zeros((9, 0), np.float32)})
        found, kept = combine(
            CohortResult(there, jnp.float32(len(used)), (), (), jnp.asarray(mask), jnp.asarray(~mask))
        )
        assert tree.all_finite(found)
        assert not kept[~mask].any()
        assert bool(kept.any()) == (len(used) >= least)
        if len(used) >= least:
            assert np.all(found.delta["x"] <= values[mask].max(axis=0) + 1e-6)
            assert np.all(found.delta["x"] >= values[mask].min(axis=0) - 1e-6)


LIES = {"krum": robust.krum(3), "trimmed_mean": robust.trimmed_mean(0.2)}


@pytest.mark.parametrize("name", LIES)
def test_liars_move_no_cohort_of_coin_flips(name):
    """Any 2 of 10 lie, any cohort of coin flips is drawn: no message but an honest one's is believed."""
    combine = jax.jit(lambda result: LIES[name].combine(result, Cohort(jnp.arange(10), (), {}), jax.random.key(0)))
    generator, believed = np.random.default_rng(1), 0
    for _ in range(60):
        values = generator.normal(size=(10, 4)).astype(np.float32)
        liars, used = generator.permutation(10) < 2, generator.uniform(size=10) < 0.9
        if name == "trimmed_mean" and (used & liars).sum() > max(1, int(0.2 * used.sum())):
            continue
        values[liars] = 200.0
        found, kept = combine(
            CohortResult(ClientMessage(values), jnp.float32(1), (), (), jnp.asarray(used), ~jnp.asarray(used))
        )
        believed += bool(kept.any())
        assert not kept.any() or np.abs(found.delta).max() < 10.0
    assert believed > 15


def test_a_round_with_too_few_clients_changes_nothing_and_says_so():
    """Krum of five under coin flips; before, one finite client in a late slot was taken for nobody at all."""
    problem = problems.make_problem(11, np.float32)
    algorithm = jaxfed.uplink(fedavg(), aggregate=robust.krum(1))
    server, seen = algorithm.init(problem.params, 5), []
    options = {"rounds": 6, "batching": jaxfed.Steps(1, 4)}
    data = jaxfed.data.client_data(problem.clients)

    def look(server, info):
        seen.append((int(info.num_used), jax.device_get(server.params)))

    with pytest.warns(UserWarning, match="fewer clients with finite results than its aggregate needs"):
        _, history = jaxfed.simulate(
            algorithm, server, data, sampler=jaxfed.CoinFlips(0.8), seed=2, **arguments(callbacks=[look], **options)
        )
    sizes = [int((jaxfed.CoinFlips(0.8).draw(2, number, 5) >= 0).sum()) for number in range(6)]
    assert history.rounds["num_used"] == [int(size == 5) for size in sizes]
    assert 0 < sum(history.rounds["num_used"]) < 6
    assert [loss is None for loss in history.rounds["loss"]] == [size < 5 for size in sizes]
    before = problem.params
    for used, params in seen:
        assert used == 1 or all(jax.tree.leaves(jax.tree.map(np.array_equal, params, before)))
        before = params
    with pytest.raises(ValueError, match=r"expected cohorts of 5 clients or more for krum\(1, 1\), got 4 slots"):
        jaxfed.simulate(algorithm, server, data, sampler=jaxfed.FixedSize(4), **arguments(**options))


PLANS = {"vmap": jaxfed.vmap(), "map": jaxfed.map(), "chunked": jaxfed.chunked(8)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", PLANS)
def test_sums_of_narrow_messages_do_not_stand_still(name, dtype):
    """2,000 messages of .01, one of 2,000 of 40 for float16, weights of 257: the means are those of wide numbers."""
    small, large = jnp.asarray(0.01, dtype), jnp.asarray(40.0, dtype)

    def client(member, key):
        none = jnp.float32(0)
        info = ClientInfo(none, none, none, none, jnp.int32(1), none, jnp.int32(1), none, ())
        return ClientUpdate(ClientMessage([small, large], total=[small]), member.rows, info)

    for weights in (None, jnp.full(2000, 257.0)):
        cohort = Cohort(jnp.arange(2000, dtype=jnp.int32), jaxfed.ClientRow((), ()), {}, weights)
        result = jax.jit(lambda cohort: PLANS[name](client, cohort, jax.random.key(0)))(cohort)
        found = plans.means(result)
        expected = [np.float32(small), np.float32(large)]
        np.testing.assert_allclose(np.float32(found.delta), expected, rtol=1e-4)
        np.testing.assert_allclose(np.float32(found.total[0]), 2000 * np.float32(small), rtol=1e-4)


@pytest.mark.parametrize("aggregate", [None, robust.median(), robust.krum(0, selected=3)])
def test_a_step_of_narrow_parameters_keeps_their_dtype(aggregate):
    problem = problems.make_problem(11, np.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)

    def loss_fn(params, batch, key):
        return problems.loss_fn(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), batch, key)

    algorithm = jaxfed.uplink(jaxfed.scaffold(loss_fn), aggregate=aggregate)
    server = algorithm.init(params, 5)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(params), 5)
    cohort = problems.cohort_of(problem, [0, 1, 2, 4], problems.indices(problem, 0, [0, 1, 2, 4], 1, 4), rows)
    after, _, _ = jax.eval_shape(algorithm.step, server, cohort, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, server)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_means_of_narrow_numbers(dtype):
    """Of facts and losses: 257 numbers, whose count bfloat16 does not hold, and a sum that float16 does not."""
    values = jnp.full(257, 300.0, dtype)
    found = jaxfed.masked_mean(values, jnp.ones(257, bool))
    assert found.dtype == dtype
    assert float(found) == 300.0
    located = {"median": robust.median(), "trimmed": robust.trimmed_mean(0.1), "geometric": robust.geometric_median()}
    messages = ClientMessage(jnp.full((257, 2), 40_000.0 if dtype == "float16" else 300.0, dtype))
    result = CohortResult(messages, jnp.float32(257), (), (), jnp.ones(257, bool), jnp.zeros(257, bool))
    for aggregate in located.values():
        middle, _ = aggregate.combine(result, Cohort(jnp.arange(257), (), {}), jax.random.key(0))
        np.testing.assert_allclose(np.float32(middle.delta), np.float32(messages.delta[0]), rtol=1e-3)
