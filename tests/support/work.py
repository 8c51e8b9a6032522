"""Three kinds of work that save regularly, so that tests and ``make soak`` can kill and restart them.

`python -m tests.support.work KIND DIRECTORY COUNT`. The result of each does not depend on interruptions.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import checkpoint
from jaxspec.training import Schedule, distillation_loss, fit
from tests.support.jaxfed import killed_run
from tests.support.jaxspec import models


def simulation(directory, rounds):
    """A federated run with noisy gradients that saves every round."""
    return killed_run.run(directory, rounds, idle=1000)[0]


def training(directory, steps):
    """A draft distilled from a target, saved every second step."""
    schedule = Schedule(steps=steps, batch_size=2, sequence_length=8, learning_rate=1e-2, warmup=2)
    corpus = np.random.default_rng(4).integers(models.VOCAB, size=400).astype(np.int32)
    draft = models.stranger()
    loss, batch = distillation_loss(draft.network, models.target()), lambda step: schedule.batch(corpus, 0, step)
    return fit(loss, draft.params, batch, schedule, directory=directory, progress=False, save_every=2)


def saved_as(step):
    """The tree of a step of ``saving``: every kind of leaf, and enough numbers for a save to take a while."""
    numbers = np.random.default_rng(step).normal(size=(4, 20_000)).astype(np.float32)
    return {"step": step, "key": jax.random.key(step), "numpy": list(numbers), "jax": jnp.full(3, step, jnp.bfloat16)}


def saving(directory, count):
    """Saves one after the other, of which the last three are kept."""
    if directory is not None:
        last = checkpoint.latest(directory) or 0
        with checkpoint.Writer(directory, keep=3) as writer:
            for step in range(last + 1, count + 1):
                writer.save(step, saved_as(step))
        return checkpoint.load(directory, like=saved_as(count))
    return saved_as(count)


KINDS = {"simulation": simulation, "training": training, "saving": saving}


def same(one, other):
    """Whether two trees are equal to the bit."""
    return jax.tree.all(jax.tree.map(lambda a, b: bits(a) == bits(b), one, other))


def bits(leaf):
    """Dtype, shape and bytes of a leaf."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
    return type(leaf), leaf


if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
