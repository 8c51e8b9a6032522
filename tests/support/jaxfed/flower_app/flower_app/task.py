"""What both sides share, and the test that compares them with a simulation."""

import numpy as np

import jaxfed
from tests.support.jaxfed import problems

PROBLEM = problems.make_problem(21, np.float32)
CLIENTS = PROBLEM.clients[:3]
ROUNDS = {
    "batching": jaxfed.Epochs(1, 4),
    "sampler": jaxfed.FixedSize(2),
    "seed": 31,
}  # [1, 2], [0, 2], [0, 1], [0, 2], [0, 2]


def algorithm_of(name):
    return jaxfed.algorithms.get(name)(problems.loss_fn, learning_rate_decay=0.9)


def start_of(algorithm):
    return algorithm.init(PROBLEM.params, len(CLIENTS))
