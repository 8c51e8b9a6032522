"""A small run with checkpoints, to be killed.

`python -m tests.support.jaxfed.killed_run DIRECTORY ROUNDS [KILL_AFTER] [disk]`.
"""

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxfed
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments


def run(directory, rounds, callbacks=(), disk=False, idle=200_000, save_every=1, **options):
    """FedSpeed with gradients that depend on the keys; ``idle`` extra numbers make saves slow."""
    problem = problems.make_problem(21, np.float32)
    params = {**problem.params, "idle": jnp.ones(idle, jnp.float32)}

    def loss_fn(params, batch, key):
        loss, _ = problems.loss_fn(params, batch, key)
        return loss + 0.1 * jnp.sum(params["bias"] * jax.random.normal(key, (problems.CLASSES,))), ()

    algorithm = jaxfed.fedspeed(loss_fn, learning_rate_decay=0.999, weight_decay=0.01, relaxation=0.1)
    store = jaxfed.DiskStore(f"{directory}-rows") if disk else None
    chosen = {
        "store": store,
        "sampler": jaxfed.FixedSize(2),
        "batching": jaxfed.Epochs(1, 4),
        "callbacks": callbacks,
        **options,
    }
    return jaxfed.simulate(
        algorithm,
        algorithm.init(params, problems.CLIENTS),
        jaxfed.data.client_data(problem.clients),
        rounds=rounds,
        checkpoint=jaxfed.Checkpointing(directory, every=save_every, keep=3) if directory else None,
        **arguments(**chosen),
    )


def kill_after(round_number):
    """Callback that kills the process with SIGKILL after that round, before it is saved."""

    def callback(server, info):
        if server.round == round_number:
            os.kill(os.getpid(), signal.SIGKILL)

    return callback


if __name__ == "__main__":
    directory, rounds, *rest = sys.argv[1:]
    kills = [kill_after(int(number)) for number in rest if number != "disk"]
    run(directory, int(rounds), kills, disk="disk" in rest)
