"""Twenty runs, four learning rates with five seeds each: one sweep, and the same runs one after the other.

    python benchmarks/sweeps.py [--rounds 60] [--at-once 1 20] [--json]

FedSpeed on an MLP (784-200-200-10), 100 clients of 100 random samples, 10 a round, one epoch of batches of 50.
``separate``: `jaxfed.simulate` twenty times, each compiling its program. ``sweep``: `jaxfed.sweep`, by the number of
runs that are computed at once. ``one_run_s``: one run, compiled before. ``compile_s``: a sweep of one run less that; of
``separate`` all that twenty runs took beyond compiled ones. ``ratio_to_steps`` = (seconds - compile_s) / 20 compiled
runs (1 is the floor where runs take turns), ``ratio_to_one`` = seconds / one compiled run.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from machine import card
from networks import NETWORKS

import jaxfed
from jaxfed import models

RATES, SEEDS = (0.01, 0.03, 0.1, 0.3), range(5)
CLIENTS, SAMPLES, COHORT, BATCH = 100, 100, 10, 50
BATCHING, SAMPLER = jaxfed.Epochs(1, BATCH), jaxfed.FixedSize(COHORT)
QUIET = jaxfed.Report(progress=False)


def problem() -> tuple[jaxfed.data.ClientData, Any, Any]:
    """Return random clients, parameters and the loss function."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, (CLIENTS, SAMPLES))
    middles = draw.standard_normal((10, 784), np.float32)
    x = draw.standard_normal((CLIENTS, SAMPLES, 784), np.float32) + middles[labels]
    clients = [{"x": own, "y": y.astype(np.int32)} for own, y in zip(x, labels, strict=True)]
    params, apply = NETWORKS["mlp"].build(False)
    return jaxfed.data.client_data(clients), params, models.cross_entropy(apply)


def lines(rounds: int, at_once: list[int]) -> Iterator[dict[str, Any]]:
    """Time both ways."""
    data, params, loss_fn = problem()

    def build(rate: float) -> jaxfed.FederatedAlgorithm:
        return jaxfed.fedspeed(loss_fn, client_learning_rate=rate)

    def simulate(algorithm: jaxfed.FederatedAlgorithm, seed: int) -> float:
        began = time.perf_counter()
        server = algorithm.init(params, CLIENTS)
        server, _ = jaxfed.simulate(
            algorithm, server, data, rounds=rounds, batching=BATCHING, sampler=SAMPLER, seed=seed, report=QUIET
        )
        jax.block_until_ready(server.params)
        return time.perf_counter() - began

    algorithm = build(RATES[0])
    simulate(algorithm, 0)
    one = float(np.median([simulate(algorithm, 0) for _ in range(5)]))
    runs = len(RATES) * len(SEEDS)

    def swept(over: dict[str, Any], size: int) -> float:
        began = time.perf_counter()
        jaxfed.sweep(
            build, lambda each, key: each.init(params, CLIENTS), data, over=over,
            rounds=rounds, batching=BATCHING, sampler=SAMPLER, report=QUIET, at_once=size,
        )  # fmt: skip
        return time.perf_counter() - began

    compiling = max(0.0, swept({"rate": RATES[:1]}, 1) - one)
    for size in at_once:
        seconds = swept({"rate": RATES, "seed": SEEDS}, size)
        yield {"way": "sweep", "at_once": size, **facts_of(rounds, runs, one, seconds, compiling)}
    seconds = sum(simulate(build(rate), seed) for rate in RATES for seed in SEEDS)
    yield {"way": "separate", "at_once": 1, **facts_of(rounds, runs, one, seconds, max(0.0, seconds - runs * one))}


def facts_of(rounds: int, runs: int, one: float, seconds: float, compiling: float) -> dict[str, Any]:
    """Sizes, seconds and ratios of one way."""
    ratios = {"ratio_to_steps": (seconds - compiling) / (runs * one), "ratio_to_one": seconds / one}
    sizes = {"runs": runs, "rounds": rounds, "seconds": seconds, "one_run_s": one, "compile_s": compiling}
    return {**sizes, **ratios, **card()}


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for each in lines(options.rounds, options.at_once):
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in each.items()}
        print(json.dumps(rounded) if options.json else "  ".join(f"{name} {value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
