"""Warnings of a run before its first round, and schedules that it refuses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxfed
from jaxfed.data import Epochs, Steps
from jaxfed.run import probing
from tests.support.jaxfed import problems

PROBLEM = problems.make_problem(11, np.float32)
DATA = jaxfed.data.client_data(PROBLEM.clients)
ZEROS = jax.tree.map(jnp.zeros_like, PROBLEM.params)
QUIET = jaxfed.Report(progress=False)


def losses_of(params, batch):
    logits = batch["x"] @ params["weight"]
    return optax.softmax_cross_entropy_with_integer_labels(logits + params["bias"][None], batch["y"])


def forgetful(params, batch, key):
    return jnp.mean(losses_of(params, batch)), {}


def normalised(params, batch, key):
    """It has a mask, and statistics of the whole batch before it."""
    x = batch["x"] - jnp.mean(batch["x"], axis=0, keepdims=True)
    return jaxfed.masked_mean(losses_of(params, {**batch, "x": x}), batch["mask"]), {}


def simulate(loss_fn, params=ZEROS, data=DATA, rounds=1, **options):
    options = {"batching": jaxfed.Epochs(1, 4), "sampler": jaxfed.FixedSize(2), **options}
    algorithm = jaxfed.fedavg(loss_fn)
    return jaxfed.simulate(
        algorithm, algorithm.init(params, len(data.lengths)), data, rounds=rounds, report=QUIET, **options
    )


@pytest.mark.parametrize(("loss_fn", "rounds"), [(forgetful, 2), (normalised, 0)])
def test_a_loss_that_sees_masked_samples_is_warned_of_once_per_run(loss_fn, rounds):
    """Also at zeros, where every sample has the same loss; the warning names the caller."""
    with pytest.warns(UserWarning, match=r"leaves out samples whose mask is False.*jaxfed.masked_mean") as caught:
        simulate(loss_fn, rounds=rounds)
    assert [each.filename for each in caught] == [__file__]


def test_no_batch_is_short_no_warning():
    """Five steps of four: every client has at least seven samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(forgetful, rounds=0, batching=Steps(5, 4))


@pytest.mark.parametrize("loss_fn", [problems.loss_fn, jaxfed.mixed_precision(problems.loss_fn, jnp.bfloat16)])
@pytest.mark.parametrize("batching", [Epochs(1, 4), Steps(2, 100)])
def test_a_masked_loss_does_not_depend_on_masked_samples(loss_fn, batching):
    client, count = probing.short_batch(batching, np.asarray(DATA.lengths))
    batches = [probing._batch(DATA, client, count, batching.batch_size, seed) for seed in (0, 1)]
    assert batches[0]["mask"].sum() == count < batching.batch_size
    assert (batches[0]["x"] != batches[1]["x"]).any()
    before, after = probing.mask_losses(loss_fn, ZEROS, (), batches)
    assert before == after


def classifier(module_conv, **options):
    """A small convolutional network as (params, loss_fn), in Flax NNX or Linen."""
    if module_conv is nnx.Conv:

        class Net(nnx.Module):
            def __init__(self):
                self.conv = nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0), **options)

            def __call__(self, x):
                return jnp.mean(self.conv(x), axis=(1, 2))

        params, apply = jaxfed.models.functional(Net())
        return params, jaxfed.models.cross_entropy(apply)
    net = linen.Conv(2, (3, 3), **options)
    params = net.init(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))
    return params, jaxfed.models.cross_entropy(lambda params, x: jnp.mean(net.apply(params, x), axis=(1, 2)))


OURS = {"conv_general_dilated": jaxfed.models.conv_general_dilated}


@pytest.mark.parametrize("conv", [nnx.Conv, linen.Conv], ids=["nnx", "linen"])
def test_plain_convolutions_are_warned_of_and_ours_are_not(conv):
    generator = np.random.default_rng(0)
    clients = [{"x": generator.normal(size=(4, 5, 5, 1)).astype(np.float32), "y": np.arange(4) % 2}] * 2
    data = jaxfed.data.client_data([{**each, "y": each["y"].astype(np.int32)} for each in clients])
    params, loss_fn = classifier(conv)
    with pytest.warns(UserWarning, match="got 1 of lax.conv_general_dilated .*jaxfed.models.conv_general_dilated"):
        simulate(loss_fn, params, data, rounds=0)
    params, loss_fn = classifier(conv, **OURS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(loss_fn, params, data, rounds=0)


def test_a_kernel_that_all_clients_share_is_not_slow():
    """A fixed filter, and parameters with as many axes as a kernel."""
    kernel = jnp.ones((3, 3, 1, 1))

    def loss_fn(params, batch, key):
        x = jax.lax.conv_general_dilated(batch["x"], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jaxfed.masked_mean(jnp.mean(x * params["gain"], axis=(1, 2, 3)), batch["mask"]), {}

    batch = {"x": np.ones((2, 4, 4, 1), np.float32), "mask": np.ones(2, bool)}
    assert probing.slow_convolutions(loss_fn, {"gain": jnp.ones((1, 4, 4, 1))}, (), batch) == 0


def test_a_schedule_that_falls_below_zero_is_refused_with_its_round():
    def falling(number):
        return 0.3 - 0.1 * number.astype(float)

    algorithm = jaxfed.fedavg(problems.loss_fn, client_learning_rate=falling)
    options = {"sampler": jaxfed.FixedSize(2), "batching": jaxfed.Steps(1, 4), "report": QUIET}
    with pytest.raises(ValueError, match=r"expected a schedule of finite numbers ≥ 0, got -0.09.* in round 4"):
        jaxfed.simulate(algorithm, algorithm.init(ZEROS, problems.CLIENTS), DATA, rounds=6, **options)
    probing.check_learning_rates(algorithm, 0, 4)
