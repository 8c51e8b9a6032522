"""`plan="auto"`: every plan is timed on a real cohort, once, and the fastest is taken."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxfed.core.protocol import ClientRow, Cohort, Plan, Server
from jaxfed.layout.plans import Sharded
from jaxfed.layout.sharding import slowest
from jaxfed.rows.rounds import RoundConfig, World, cohort_of, play

STEPS = 5
"""Local steps of a trial: enough to time a plan, few enough to be cheap."""
SECONDS, LEAST, MOST = 2.0, 3, 25
"""Seconds for which all plans are timed, in turns; least and most repetitions."""


class Trial(NamedTuple):
    """What plans are timed on: configuration, server and data of a run, ids [C] of a cohort, and its rows."""

    config: RoundConfig
    server: Server
    world: World
    ids: np.ndarray
    rows: Callable[[], ClientRow]

    @property
    def slots(self) -> int:
        """C."""
        return len(self.ids)


def fastest(trial: Trial, plans: Sequence[Plan], mesh: Mesh | None = None) -> Plan:
    """Return the plan with the shortest median round of a few local steps; one that does not fit memory is skipped.

    The first plan within 2 % of the fastest is taken: earlier ones need less memory.

    Raises:
        ValueError: no plan fits memory.
    """
    if len(plans) == 1:
        return plans[0]
    cohort = jax.jit(functools.partial(cohort_of, trial.config))(
        trial.world, trial.server.round, trial.ids, trial.rows()
    )
    cohort = cohort._replace(batches={name: array[:, :STEPS] for name, array in cohort.batches.items()})
    programs = [_compiled(trial, Sharded(mesh, plan) if mesh else plan, cohort) for plan in plans]
    timed: list[list[float]] = [[] for _ in plans]
    began = time.perf_counter()
    for turn in range(MOST):
        if turn >= LEAST and slowest(time.perf_counter() - began, mesh) > SECONDS:
            break
        for program, times in zip(programs, timed, strict=True):
            if program is not None:
                times.append(program())
    medians = [slowest(float(np.median(times)), mesh) if times else np.inf for times in timed]
    if not np.isfinite(min(medians)):
        raise ValueError(f"expected one of {len(plans)} plans to run, all ran out of memory; take smaller batches")
    return plans[next(n for n, seconds in enumerate(medians) if seconds <= 1.02 * min(medians))]


def _compiled(trial: Trial, plan: Plan, cohort: Cohort) -> Callable[[], float] | None:
    """Compile and run once; return a function that times one more run, or None where memory is too small."""
    config = dataclasses.replace(trial.config, plan=plan)
    step = jax.jit(functools.partial(play, config))

    def run() -> float:
        began = time.perf_counter()
        jax.block_until_ready(step(trial.server, cohort, trial.world))
        return time.perf_counter() - began

    try:
        run()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return run
