"""A trainable part of a model: what is sent, stored and stepped, and what never moves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.core import trainable
from tests.support.jaxfed import problems, programs
from tests.support.jaxfed.runs import arguments

RANK, WIDTH = 2, 6


def lora_params():
    """W frozen beside A·B trainable, and a trainable bias; B is not zero, so no gradient is."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape).astype(np.float32))

    layer = {"w": normal(4, WIDTH), "lora_a": normal(4, RANK), "lora_b": normal(RANK, WIDTH)}
    return {"layers": [layer], "head": {"w": normal(WIDTH, problems.CLASSES), "bias": normal(problems.CLASSES)}}


def lora_loss(params, batch, key):
    (layer,), head = params["layers"], params["head"]
    hidden = jnp.tanh(batch["x"] @ layer["w"] + (batch["x"] @ layer["lora_a"]) @ layer["lora_b"])
    return problems.loss_fn({"weight": head["w"], "bias": head["bias"]}, {**batch, "x": hidden}, key)


def is_lora(path: str) -> bool:
    return "lora" in path or path == "head/bias"


MASKS = {
    "paths": is_lora,
    "bools": {"layers": [{"w": False, "lora_a": True, "lora_b": True}], "head": {"w": False, "bias": True}},
    "prefix": {"layers": [True], "head": False},
}
TRAINED = {"paths": 3, "bools": 3, "prefix": 3}


def setting(name, ids=(0, 2), **options):
    """An algorithm of the trainable part, its server, the rows of all clients and a cohort."""
    problem = problems.make_problem(3, np.float32)
    part, frozen = trainable.split(lora_params(), is_lora)
    algorithm = jaxfed.algorithms.get(name)(trainable.only(lora_loss), **options)
    server = algorithm.init(part, problems.CLIENTS, frozen)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(part, frozen), problems.CLIENTS)
    index = problems.indices(problem, 0, list(ids), 3, 5)
    return algorithm, server, rows, problems.cohort_of(problem, list(ids), index, rows)


@pytest.mark.parametrize("mask", MASKS)
def test_split_and_join(mask):
    params = lora_params()
    part, frozen = trainable.split(params, MASKS[mask])
    chex.assert_trees_all_equal(trainable.join(part, frozen), params)
    counts = len(jax.tree.leaves(part)), len(jax.tree.leaves(frozen))
    assert counts == (TRAINED[mask], len(jax.tree.leaves(params)) - TRAINED[mask])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (lambda path: False, ValueError, "trains nothing; mark some of head/bias, head/w, layers/0/lora_a"),
        (lambda path: True, ValueError, "trains everything; give parameters and loss function"),
        ({"layers": [True], "hed": False}, ValueError, "expected a mask like the parameters .* got PyTreeDef"),
        ({"layers": [True, False], "head": False}, ValueError, "expected a mask like the parameters"),
        ({"layers": [True], "head": 0}, TypeError, "True or False for every leaf, got 0"),
        (lambda path: path.find("lora"), TypeError, "True or False for every leaf, got -1"),
    ],
)
def test_refuses(mask, error, message):
    with pytest.raises(error, match=message):
        trainable.split(lora_params(), mask)


def test_state_of_its_own_must_be_frozen():
    with pytest.raises(ValueError, match="must be \"frozen\" as well, got the policy 'average'"):
        trainable.only(jaxfed.Stateful(lambda params, state, batch, key: (0.0, (state, ()))))


def test_gradient_is_the_part_of_the_whole_gradient():
    _, server, _, cohort = setting("fedavg")
    batch, key = {name: leaf[0, 0] for name, leaf in cohort.batches.items()}, jax.random.key(0)
    loss_fn = trainable.only(lora_loss).loss_fn
    actual, _ = jax.grad(loss_fn, has_aux=True)(server.params, server.model_state, batch, key)
    whole, _ = jax.grad(lora_loss, has_aux=True)(lora_params(), batch, key)
    chex.assert_trees_all_equal(actual, trainable.split(whole, is_lora)[0])
    assert min(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(actual)) > 0


@pytest.mark.parametrize("name", sorted(jaxfed.algorithms.registry))
def test_message_and_row_hold_only_the_trainable_leaves(name):
    """No leaf of a frozen one's shape is sent or kept; with every optional part there."""
    algorithm, server, _, cohort = setting(name, relaxation=0.1)
    member = jax.tree.map(lambda leaf: leaf[0], cohort)
    update = jax.eval_shape(algorithm.client_update, server, member, jax.random.key(0))
    sent = {leaf.shape for leaf in jax.tree.leaves((update.message, update.row, server.extra))}
    kept = {leaf.shape for leaf in jax.tree.leaves(server.model_state)}
    assert sent - {()} == {leaf.shape for leaf in jax.tree.leaves(server.params)}
    assert not sent & kept
    assert update.message.model_state == update.row.model_state == ()


def test_learns_and_leaves_the_frozen_part_bit_for_bit():
    algorithm, server, _, cohort = setting("fedspeed", client_learning_rate=1.0)
    before, step, losses = lora_params(), jax.jit(algorithm.step), []
    for _ in range(15):
        server, rows, info = step(server, cohort, jax.random.key(0))
        cohort, losses = cohort._replace(rows=rows), [*losses, float(info.client.loss)]
    assert losses[-1] < 0.6 * losses[0], losses
    after = trainable.join(server.params, server.model_state)
    chex.assert_trees_all_equal(*(trainable.split(params, is_lora)[1] for params in (before, after)))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), *(trainable.split(p, is_lora)[0] for p in (before, after)))
    assert all(jax.tree.leaves(moved))


def test_frozen_leaves_are_not_copied_for_every_client():
    """A batched plan holds them once: no value has a frozen leaf's shape behind an axis of clients."""
    algorithm, server, _, cohort = setting("fedspeed", ids=(0, 2, 4))
    program = programs.traced(algorithm.step, server, cohort, jax.random.key(0))
    produced = {variable.aval.shape: equation for equation in program for variable in equation.outvars}
    assert (3, problems.FEATURES, RANK) in produced
    copies = [produced.get((3, *leaf.shape)) for leaf in jax.tree.leaves(server.model_state)]
    assert copies == [None, None]


def test_frozen_state_beside_frozen_parameters():
    """A loss with frozen state of its own: fixed statistics of the inputs."""

    def normalised_loss(params, statistics, batch, key):
        loss, aux = lora_loss(params, {**batch, "x": batch["x"] / statistics}, key)
        return loss, (statistics + 1, aux)

    _, server, _, cohort = setting("fedavg")
    algorithm = jaxfed.fedavg(trainable.only(jaxfed.Stateful(normalised_loss, "frozen")))
    state = server.model_state, jnp.full((1, problems.FEATURES), 2.0)
    server = algorithm.init(server.params, problems.CLIENTS, state)
    after, _, info = jax.jit(algorithm.step)(server, cohort, jax.random.key(0))
    chex.assert_trees_all_equal(after.model_state, state)
    by_hand, _, expected = jax.jit(jaxfed.fedavg(trainable.only(lora_loss)).step)(
        server._replace(model_state=state[0]),
        cohort._replace(batches={**cohort.batches, "x": cohort.batches["x"] / 2}),
        jax.random.key(0),
    )
    chex.assert_trees_all_close(after.params, by_hand.params, atol=1e-6)
    np.testing.assert_allclose(info.client.loss, expected.client.loss, rtol=1e-6)


def test_simulation_with_checkpoints(tmp_path):
    """A run that continues from its checkpoint ends where an unbroken one does, frozen part included."""
    problem = problems.make_problem(5, np.float32)
    part, frozen = trainable.split(lora_params(), is_lora)
    algorithm = jaxfed.feddyn(trainable.only(lora_loss))

    def run(rounds, checkpoint=None):
        server = algorithm.init(part, problems.CLIENTS, frozen)
        data = jaxfed.data.client_data(problem.clients)
        options = {"sampler": jaxfed.FixedSize(2), "batching": jaxfed.Steps(2, 4), "checkpoint": checkpoint}
        return jaxfed.simulate(algorithm, server, data, rounds=rounds, **arguments(**options))[0]

    run(2, tmp_path / "run")
    chex.assert_trees_all_equal(run(4, tmp_path / "run"), run(4))
    chex.assert_trees_all_equal(run(4).model_state, frozen)
