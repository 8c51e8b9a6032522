"""The server's side: rounds over a Flower grid, with the cohorts and the results of `jaxfed.simulate`."""

import functools
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from jaxfed.core.checks import check_range, python_number
from jaxfed.core.protocol import FederatedAlgorithm, RoundInfo, Server
from jaxfed.core.samplers import Sampler, cohorts, weights_of
from jaxfed.data import Epochs, Steps
from jaxfed.flower._deployment import Deployment, Replies
from jaxfed.flower._roster import Roster, log
from jaxfed.flower._training import adds_noise
from jaxfed.layout.plans import name_of, vmap
from jaxfed.messages import check_cohorts
from jaxfed.rows.engine import Draw
from jaxfed.rows.rounds import RoundConfig
from jaxfed.run import Checkpointing, History, Report, RunState, config_of, diverged
from jaxfed.run.probing import check_learning_rates
from jaxfed.run.resume import Saver
from jaxfed.run.state import carrying, nothing_trained, take

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
    """Return a ServerApp that runs `serve(grid, algorithm, server, **options)` and calls `finished(server, history)`.

    Where options depend on Flower's run configuration, call `serve` in the main function of a ServerApp of your own.
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
    batching: Steps | Epochs,
    sampler: Sampler,
    seed: int = 0,
    replies: Replies = Replies(),
    report: Report = Report(),
    checkpoint: str | Path | Checkpointing | None = None,
) -> tuple[Server, History]:
    """Run a federated algorithm on Flower's nodes, each of which runs `client_app`; for a ServerApp's main function.

    Cohorts, batches and keys are those of `jaxfed.simulate` with the same arguments, and so are the results where every
    reply arrives. A client without a usable reply takes no part in the round: the means are over the others, its row
    is reset to its last value, and the running sums stay the sums of all clients' rows. All clients may be without one:
    then the round changes nothing.

    Under `jaxfed.privacy.central_noise` noise and cohorts use entropy of the server's own, since every client knows the
    seed: they cannot be reproduced, and the results differ from those of `simulate`.

    Args:
        grid: Flower's.
        algorithm: from a factory such as `jaxfed.fedspeed`.
        server: `algorithm.init(params, num_clients)`; clients are 0 to N−1, by the "partition-id" of their nodes. Or
            the `state` of an exception of `serve`, to continue that run.
        rounds: total number of rounds; a checkpoint that has done some does the rest.
        batching: `jaxfed.Steps(local_steps, batch_size)` or `jaxfed.Epochs(local_epochs, batch_size)`.
        sampler: as of `simulate`; with `weights="samples"` clients count by the numbers of samples that they report.
        seed: seed of cohorts, batches and the loss function's keys.
        replies: seconds that a round waits for clients and their replies, and how these are added up.
        report: as of `simulate`; `progress` logs every round.
        checkpoint: a directory, or `jaxfed.Checkpointing(directory, every, keep)`, on the server. If it holds
            checkpoints of this run, the same call continues from the last good one, and clients go back to it too.

    Returns:
        The server after the last round, and the `History`; in addition to the numbers of `simulate` its rounds have
        "num_missing" (drawn clients that were not connected, failed, or did not reply in time) and "num_refused"
        (replies of another structure, shape or dtype); "num_excluded" counts replies that were not finite.

    Raises:
        ValueError: arguments that contradict each other, a checkpoint of another run, a server alone that has done
            rounds in which clients kept something, or a sampler that draws no cohort.
        FloatingPointError: every drawn client returned NaN or infinity, or every client that replied did for
            MOST_NOT_FINITE such rounds without a finite reply between them; names round and clients.

    Every exception that ends a run has an attribute `state`: the `RunState` after the last round, or None where it was
    raised inside one.
    """
    begun, server = (server, server.server) if isinstance(server, RunState) else (None, server)
    check_range("rounds", rounds, least=0, whole=True)
    rounds, plan, num_clients = python_number(rounds), replies.plan or vmap(), int(server.num_clients)
    config = RoundConfig(algorithm, batching, plan, longest=0, seed=python_number(seed))
    draw, finite = _draws(config, sampler, num_clients), _Finite()
    weighted = weights_of(sampler, np.ones(num_clients)) is not None
    check_cohorts(algorithm, sampler, num_clients, weighted)
    deployment = Deployment(config, sampler, server, Roster(grid, num_clients), replies)
    with Saver(checkpoint, config_of(config, sampler, num_clients), deployment.identity, KIND) as saver:
        history = saver.resume(deployment) or deployment.begin(begun)
        check_learning_rates(algorithm, int(deployment.server.round), rounds)
        history.plan = name_of(plan)
        if 0 < (done := int(deployment.server.round)) >= rounds:
            log.warning(nothing_trained(done, rounds, "the run"))
        with carrying(deployment, None, history):
            ended = report.before_rounds(history, deployment.server, None)
            while not ended and (done := int(deployment.server.round)) < rounds:
                began = time.perf_counter()
                info, missing = deployment.play(draw(done))
                history.add_round(done + 1, info, time.perf_counter() - began, missing, clients=report.clients)
                finite.check(info, done, draw, no_reply=sum(missing.values()))
                ended = report.after_round(history, deployment.server, info, done + 1 >= rounds)
                saver.save(deployment, history, now=ended)
                if report.progress:
                    log.info("round %d of %d: %s", done + 1, rounds, {"num_used": int(info.num_used), **missing})
            saver.wait()
        history.state = take(deployment, None, history) if report.keep_state else None
    return deployment.server, history


def _draws(config: RoundConfig, sampler: Sampler, num_clients: int) -> Draw:
    """Return the cohorts: from the seed, or under noise from entropy of the server's own, which no client knows."""
    if not adds_noise(config.algorithm):
        return cohorts(sampler, config.seed, num_clients)
    return functools.cache(lambda number: cohorts(sampler, secrets.randbits(32), num_clients)(number))


class _Finite:
    """Stops a run whose clients return nothing finite, which would otherwise continue without ever changing."""

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
