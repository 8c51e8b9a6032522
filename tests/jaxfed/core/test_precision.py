"""Mixed precision: what is narrow, what stays wide, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.core import trainable
from tests.support.jaxfed import problems, programs

NARROW = [jnp.bfloat16, jnp.float16]


def wide_logits(params, batch, key):
    """The softmax of wide logits; everything before it in the dtype of what comes in."""
    product = batch["x"] @ params["weight"]
    logits = (product + jnp.broadcast_to(params["bias"], product.shape)).astype(jnp.float32)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)[:, 0]
    return jaxfed.masked_mean(losses, batch["mask"]), {"largest": jnp.max(product)}


def setting(loss_fn, name="fedspeed", **options):
    problem = problems.make_problem(3, np.float32)
    algorithm = jaxfed.algorithms.get(name)(loss_fn, **options)
    server = algorithm.init(problem.params, problems.CLIENTS)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params), problems.CLIENTS)
    index = problems.indices(problem, 0, [0, 2], 3, 4)
    return algorithm, server, problems.cohort_of(problem, [0, 2], index, rows)


def dots(function, *arguments):
    """Dtypes of what goes into each matrix product of a program."""
    products = [each for each in programs.traced(function, *arguments) if each.primitive.name == "dot_general"]
    return [{variable.aval.dtype for variable in each.invars} for each in products]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", ["fedspeed", "scaffold"])
def test_master_state_is_wide_and_products_are_narrow(name, dtype):
    algorithm, server, cohort = setting(jaxfed.mixed_precision(wide_logits, dtype), name)
    member = jax.tree.map(lambda leaf: leaf[0], cohort)
    update = jax.eval_shape(algorithm.client_update, server, member, jax.random.key(0))
    after, rows, info = jax.eval_shape(algorithm.step, server, cohort, jax.random.key(0))
    held = jax.tree.leaves((after.params, after.extra, rows, update.message, info.client.loss, info.client.aux))
    assert {leaf.dtype for leaf in held} == {jnp.dtype("float32")}
    products = dots(algorithm.step, server, cohort, jax.random.key(0))
    assert products == [{jnp.dtype(dtype)}] * len(products)
    assert len(products) >= 2


@pytest.mark.parametrize("dtype", NARROW)
def test_gradient_is_wide_and_near_the_wide_one(dtype):
    _, server, cohort = setting(wide_logits)
    batch = {name: leaf[0, 0] for name, leaf in cohort.batches.items()}
    wide, narrow = (
        jax.grad(loss_fn, has_aux=True)(server.params, batch, jax.random.key(0))[0]
        for loss_fn in (wide_logits, jaxfed.mixed_precision(wide_logits, dtype))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(problems.flat(narrow), problems.flat(wide), atol=0.02)
    assert np.any(problems.flat(narrow) != problems.flat(wide))


def test_small_steps_are_not_lost():
    """A step of 2⁻¹² of a parameter is below bfloat16's resolution 2⁻⁸: the master weights add it up."""

    def slope(params, batch, key):
        return jnp.sum(params["x"]), ()

    def after(loss_fn, dtype):
        algorithm = jaxfed.fedavg(loss_fn, client_learning_rate=2.0**-12)
        server = algorithm.init({"x": jnp.ones((1,), dtype)}, 1)
        rows = jax.tree.map(lambda leaf: leaf[None], algorithm.init_client(server.params))
        cohort = jaxfed.Cohort(jnp.zeros(1, jnp.int32), rows, {"mask": jnp.ones((1, 64, 1), bool)})
        return float(jax.jit(algorithm.step)(server, cohort, jax.random.key(0))[0].params["x"][0])

    assert after(jaxfed.mixed_precision(slope), jnp.float32) == 1 - 64 * 2.0**-12
    assert after(slope, jnp.bfloat16) == 1.0


def test_learns_as_wide_does():
    losses = []
    for loss_fn in (wide_logits, jaxfed.mixed_precision(wide_logits)):
        algorithm, server, cohort = setting(loss_fn, client_learning_rate=0.3)
        step, first = jax.jit(algorithm.step), None
        for _ in range(20):
            server, rows, info = step(server, cohort, jax.random.key(0))
            cohort = cohort._replace(rows=rows)
            first = first or float(info.client.loss)
        losses.append(float(info.client.loss) / first)
    assert max(losses) < 0.5
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)


def test_running_statistics_stay_wide():
    """State that is averaged goes in as it is, and comes out in its dtype even if the model narrowed it."""
    seen = []

    def loss_fn(params, state, batch, key):
        seen.append((params["weight"].dtype, state["mean"].dtype))
        loss, aux = wide_logits(params, batch, key)
        return loss, ({"mean": (0.99 * state["mean"] + 0.01).astype(jnp.bfloat16)}, aux)

    wrapped = jaxfed.mixed_precision(jaxfed.Stateful(loss_fn))
    assert wrapped.policy == "average"
    algorithm, plain_server, cohort = setting(wide_logits, "fedavg")
    algorithm = jaxfed.fedavg(wrapped)
    server = algorithm.init(plain_server.params, problems.CLIENTS, {"mean": jnp.zeros(3)})
    after, _, _ = jax.jit(algorithm.step)(server, cohort, jax.random.key(0))
    assert after.model_state["mean"].dtype == jnp.float32
    assert set(seen) == {(jnp.dtype("bfloat16"), jnp.dtype("float32"))}


def test_frozen_parameters_compute_narrow_on_either_side():
    """Wrapped inside or outside of `only`, a frozen weight is narrow in the product and wide in the server."""
    _, server, cohort = setting(wide_logits)
    part, frozen = trainable.split(server.params, lambda path: path == "bias")
    for loss_fn in (
        trainable.only(jaxfed.mixed_precision(wide_logits)),
        jaxfed.mixed_precision(trainable.only(wide_logits)),
    ):
        algorithm = jaxfed.fedavg(loss_fn)
        start = algorithm.init(part, problems.CLIENTS, frozen)
        inputs = cohort._replace(rows=algorithm.init_client(part, frozen))
        assert dots(algorithm.step, start, inputs, jax.random.key(0)) == [{jnp.dtype("bfloat16")}]
        after = jax.eval_shape(algorithm.step, start, inputs, jax.random.key(0))[0]
        assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.model_state))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.int32, bool])
def test_refuses_other_types(dtype):
    with pytest.raises(ValueError, match="compute_dtype must be a floating-point type such as jnp.bfloat16"):
        jaxfed.mixed_precision(wide_logits, dtype)
