"""The server's side: rounds over a Flower grid, with the cohorts and the results of `jaxfed.simulate`."""

import functools
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from jaxfed.core.checks import check_range, python_number
from jaxfed.core.protocol import FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.core.samplers import Sampler, cohorts
from jaxfed.flower._deployment import Deployment, Seconds
from jaxfed.flower._roster import Roster, log
from jaxfed.flower._training import adds_noise
from jaxfed.layout.plans import name_of, vmap
from jaxfed.messages import check_cohorts
from jaxfed.rows.choose import Draw
from jaxfed.rows.rounds import Recipe
from jaxfed.run import Callback, Evaluate, Weights, batching_of, config_of, diverged, sampler_of, weights_of
from jaxfed.run.history import History, RunState
from jaxfed.run.probing import check_learning_rates
from jaxfed.run.resume import Checkpointing, Saver
from jaxfed.run.state import carrying, nothing_trained

KIND = "jaxfed.flower"

MOST_NOT_FINITE = 3
"""Rounds in a row whose replies are all not finite before the run stops, where other clients gave no reply."""


def server_app(
    algorithm: FederatedAlgorithm,
    server: Server,
    *,
    finished: Callable[[Server, History], None] = lambda server, history: None,
    **options: Any,
) -> ServerApp:
    """A ServerApp that runs `serve(grid, algorithm, server, **options)` and calls `finished(server, history)`.

    Where options hang on Flower's run configuration, call `serve` in the main function of a ServerApp of your own.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        finished(*serve(grid, algorithm, server, **options))

    return app


def serve(
    grid: Grid,
    algorithm: FederatedAlgorithm,
    server: Server | RunState,
    *,
    rounds: int,
    batch_size: int,
    local_steps: int | None = None,
    local_epochs: int | None = None,
    cohort_size: int | None = None,
    sampler: Sampler | None = None,
    client_weights: Weights = "uniform",
    plan: Plan | None = None,
    seed: int = 0,
    patience: float = 60.0,
    timeout: float | None = 3600.0,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | Checkpointing | None = None,
) -> tuple[Server, History]:
    """Run a federated algorithm on Flower's nodes, each of which runs `client_app`; for a ServerApp's main function.

    Cohorts, batches and keys are those of `jaxfed.simulate` with the same arguments, and so are the results where every
    reply arrives. A client without a usable reply takes no part in the round: the means are over the others, its row
    goes back to what it was, and the running sums stay the sums of all clients' rows. All clients may be without one:
    then the round changes nothing.

    Under `jaxfed.privacy.central_noise` the noise and the cohorts are made of entropy of the server's own, since every
    client knows the seed: nobody can make them again, and the results differ from those of `simulate`.

    Args:
      grid: Flower's.
      algorithm: from a factory such as `jaxfed.fedspeed`.
      server: `algorithm.init(params, num_clients)`; clients are 0 to N−1, by the "partition-id" of their nodes. Or the
        `state` that an error of `serve` carries, to go on from it.
      rounds: total number of rounds; a checkpoint that has done some already does the rest.
      batch_size: B.
      local_steps: K steps for every client; or else
      local_epochs: passes over the client's samples. Exactly one of the two.
      cohort_size: clients in a round, drawn without replacement; or else
      sampler: another sampler. Exactly one of the two.
      client_weights: how much each client counts in the means: "uniform", "samples" (as it says itself), or N numbers.
      plan: how the replies are added up: `jaxfed.vmap()` (default) or another.
      seed: seed of cohorts, batches and the loss function's keys.
      patience: seconds that a round waits at its beginning for drawn clients that are not connected. The first round
        waits until there is a client.
      timeout: seconds that a round waits for replies; None waits for ever.
      evaluate: `evaluate(params)` -> named numbers, into the history.
      evaluate_every: rounds between two evaluations; the last round is always evaluated.
      callbacks: each called as `callback(server, info)` after every round.
      checkpoint: a directory, or `jaxfed.Checkpointing(directory, every, keep)`, on the server. If it holds checkpoints
        of this run, the same call goes on from the last good one, and clients go back to where they were then.

    Returns:
      The server after the last round, and the `History`; beside the numbers of `simulate` its rounds have "num_missing"
      (drawn clients that were not connected, failed, or did not reply in time) and "num_refused" (replies of another
      structure, shape or dtype); "num_excluded" counts replies that were not finite.

    Raises:
      ValueError: arguments that contradict each other, a checkpoint of another run, a server alone that has done rounds
        in which clients kept something, or a sampler that draws no cohort.
      FloatingPointError: every drawn client returned NaN or infinity, or every client that replied did for
        MOST_NOT_FINITE such rounds without a finite reply between them; names round and clients.

    Whatever ends a run has an attribute `state`: the `RunState` after the last round, or None where it broke off inside
    one.
    """
    begun, server = (server, server.server) if isinstance(server, RunState) else (None, server)
    check_range("rounds", rounds, least=0, whole=True)
    check_range("evaluate_every", evaluate_every, least=1, whole=True)
    rounds, seed = python_number(rounds), python_number(seed)
    plan, sampler, num_clients = plan or vmap(), sampler_of(cohort_size, sampler), int(server.num_clients)
    slots, draw, finite = sampler.num_slots(num_clients), _draws(algorithm, sampler, seed, num_clients), _Finite()
    weighted = weights_of(client_weights, np.ones(num_clients)) is not None
    check_cohorts(algorithm, sampler, num_clients, weighted)
    batching = batching_of(batch_size, local_steps, local_epochs)
    recipe = Recipe(algorithm, batching, plan, longest=0, seed=seed)
    deployment = Deployment(recipe, batching, server, Roster(grid, num_clients), Seconds(patience, timeout), slots)
    config = config_of(recipe, sampler, client_weights, num_clients)
    with Saver(checkpoint, config, deployment.identity, KIND) as saver:
        history = saver.resume(deployment) or deployment.begin(begun)
        check_learning_rates(algorithm, int(deployment.server.round), rounds)
        history.plan = name_of(plan)
        if 0 < (done := int(deployment.server.round)) >= rounds:
            log.warning(nothing_trained(done, rounds, "the run"))
        with carrying(deployment, None, history):
            while (done := int(deployment.server.round)) < rounds:
                began = time.perf_counter()
                info, more = deployment.play(draw(done), client_weights)
                history.add_round(done + 1, info, time.perf_counter() - began, more)
                finite.check(info, done, draw, no_reply=sum(more.values()))
                last = done + 1 >= rounds
                if evaluate is not None and (last or (done + 1) % evaluate_every == 0):
                    history.add_evaluation(done + 1, evaluate(deployment.server.params))
                for callback in callbacks:
                    callback(deployment.server, info)
                saver.save(deployment, history, now=last)
                log.info("round %d of %d: %s", done + 1, rounds, {"num_used": int(info.num_used), **more})
            saver.wait()
    return deployment.server, history


def _draws(algorithm: FederatedAlgorithm, sampler: Sampler, seed: int, num_clients: int) -> Draw:
    """The cohort of every round: of the seed, or under noise of entropy of the server's own, which no client knows."""
    if not adds_noise(algorithm):
        return cohorts(sampler, seed, num_clients)
    return functools.cache(lambda number: cohorts(sampler, secrets.randbits(32), num_clients)(number))


class _Finite:
    """Stops a run whose clients return nothing finite, which would otherwise go on without ever changing."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def check(self, info: RoundInfo, number: int, draw: Draw, no_reply: int) -> None:
        """Raise FloatingPointError as `simulate` does; with clients that gave no usable reply only after some rounds.

        One client that always diverges must not stop a run in which the others are offline for a round. Replies that
        are finite, but fewer than the aggregate needs, are no divergence.
        """
        ids, excluded = draw(number), info.excluded
        replied = int(np.sum(ids >= 0)) - no_reply
        if info.num_used or excluded.sum() < replied:
            self._in_a_row = 0
        elif excluded.any():
            self._in_a_row += 1
            if not no_reply or self._in_a_row >= MOST_NOT_FINITE:
                raise diverged(number, ids[excluded])
