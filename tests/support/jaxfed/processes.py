"""One process of several that simulate together.

`python -m tests.support.jaxfed.processes OUT PORT COUNT INDEX [DIRECTORY ROUNDS]` writes parameters and history, from
process 0 alone, to OUT.
"""

import json
import sys
import time

import jax
import numpy as np

import jaxfed
from tests.support.jaxfed import problems

ROUNDS = 6


def run(directory=None, rounds=ROUNDS, mesh=None, data=None, name="fedspeed"):
    problem = problems.make_problem(21, np.float32)
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn)
    return jaxfed.simulate(
        algorithm,
        algorithm.init(problem.params, problems.CLIENTS),
        data or jaxfed.data.client_data(problem.clients),
        rounds=rounds,
        sampler=jaxfed.FixedSize(4),
        batching=jaxfed.Epochs(1, 4),
        layout=jaxfed.Layout(mesh=mesh),
        report=jaxfed.Report(lambda params: {"bias": params["bias"][0]}, every=3, progress=False),
        checkpoint=directory,
    )


def main(out, port, count, index, directory=None, rounds=ROUNDS):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
    if index == "1":
        clock = time.perf_counter
        time.perf_counter = lambda: 1e4 * clock()  # all must play the same blocks, whatever one finds
    problem = problems.make_problem(21, np.float32)
    mesh = jax.make_mesh((jax.device_count(),), ("clients",))
    own = problem.clients[:2] if index == "0" else problem.clients[2:]
    data = jaxfed.data.shared_client_data(own, mesh)
    assert not data.arrays["x"].is_fully_addressable
    server, history = run(directory, int(rounds), mesh, data)
    if jax.process_index() == 0:
        params = {name: np.asarray(leaf).tolist() for name, leaf in server.params.items()}
        with open(out, "w") as file:
            json.dump({"params": params, "history": history.to_dict()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
