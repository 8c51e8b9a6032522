"""Run one method at one learning rate, a grid of learning rates, or several methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxfed
from jaxfed import checkpoint
from jaxspec.federated._alone import alone
from jaxspec.federated._examples import Continued
from jaxspec.federated._methods import FederatedMethod, method_of, one_draft
from jaxspec.federated._setup import VALIDATION, FederatedReport, FederatedSetup, TrainingOutcome
from jaxspec.models.base import Params


def compare(
    setup: FederatedSetup, unseen: Continued, names: Sequence[str] = ("fedspeed", "fedavg", "centralised")
) -> FederatedReport:
    """Train a draft by each method in ``names``, at equal numbers of samples.

    Every method runs the whole grid of learning rates. Federated methods are judged by their last round, the
    centralised one, an upper bound, by its best. Each run has its checkpoints in ``setup.directory``.

    Args:
        setup: draft, data and settings; what is sent.
        unseen: continuations on which the untrained draft and each method's best draft are compared.
        names: of ``METHODS``.

    Raises:
        ValueError: an unknown method, one that makes a draft for every client, or a cohort larger than the population.
    """
    methods = [one_draft(name) for name in names]
    report = FederatedReport({"before": setup.accepted(setup.draft.params, unseen)}, {}, setup.metric)
    for method in methods:
        report.outcomes[method.name] = outcome = best(setup, method)
        report.acceptance[method.name] = setup.accepted(outcome.params, unseen)
    return report


def best(setup: FederatedSetup, method: str | FederatedMethod) -> TrainingOutcome:
    """Run the grid of learning rates; return the outcome with the largest acceptance on the validation set."""
    outcomes = [run(setup, method, rate) for rate in setup.settings.learning_rates]
    return max(outcomes, key=lambda outcome: outcome.accepted[-1])


def run(setup: FederatedSetup, method: str | FederatedMethod, rate: float) -> TrainingOutcome:
    """Run one method at one learning rate.

    Raises:
        ValueError: an unknown method, a cohort larger than the population, or clients' examples of another kind of
            draft.
    """
    method = method_of(method)
    algorithm = method.algorithm(setup.sent.loss, setup.settings, rate, len(setup.problem.clients))
    train = {"federated": _federated, "pooled": _pooled, "alone": alone}[method.training]
    return train(setup, method, algorithm, rate)


def _federated(
    setup: FederatedSetup, method: FederatedMethod, algorithm: jaxfed.FederatedAlgorithm, rate: float
) -> TrainingOutcome:
    s, clients = setup.settings, setup.problem.clients
    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(setup.sent.params, len(clients), setup.sent.state),
        jaxfed.data.client_data(clients),
        batching=jaxfed.Steps(s.local_steps, s.batch_size),
        sampler=method.sampler(s, len(clients)),
        report=jaxfed.Report(
            lambda params: setup.evaluate(setup.whole(params)), s.evaluate_every, progress=setup.progress
        ),
        **_options(setup, method, rate),
    )
    return _outcome(setup, server.params, rate, history, history.last_known("sent_bytes"))


def _pooled(
    setup: FederatedSetup, method: FederatedMethod, algorithm: jaxfed.FederatedAlgorithm, rate: float
) -> TrainingOutcome:
    """Train one client with all text for the local steps of a whole cohort; keep the best evaluated parameters."""
    s, clients = setup.settings, setup.problem.clients
    pooled = {name: np.concatenate([client[name] for client in clients]) for name in clients[0]}
    kept = _Best(setup.before[VALIDATION], setup.sent.params, setup.folder(method.name, rate, "best"))

    def evaluate(params: Params) -> dict[str, float]:
        accepted = setup.evaluate_sent(params)
        kept.offer(accepted[VALIDATION], params)
        return accepted

    _, history = jaxfed.simulate(
        algorithm,
        algorithm.init(setup.sent.params, 1, setup.sent.state),
        jaxfed.data.client_data([pooled]),
        batching=jaxfed.Steps(s.local_steps * s.cohort_size, s.batch_size),
        sampler=jaxfed.FixedSize(1),
        report=jaxfed.Report(evaluate, s.evaluate_every, progress=setup.progress),
        **_options(setup, method, rate),
    )
    outcome = _outcome(setup, kept.params, rate, history, None)
    until = int(np.argmax(outcome.accepted)) + 1
    curves = {name: curve[:until] for name, curve in outcome.curves.items()}
    return outcome._replace(rounds=outcome.rounds[:until], accepted=outcome.accepted[:until], curves=curves)


def _options(setup: FederatedSetup, method: FederatedMethod, rate: float) -> dict[str, Any]:
    """Return the arguments that all simulations share. One client after the other is the fastest plan on a CPU."""
    s = setup.settings
    return {
        "rounds": s.rounds,
        "seed": s.seed,
        "layout": jaxfed.Layout(jaxfed.map() if jax.default_backend() == "cpu" else jaxfed.vmap()),
        "checkpoint": setup.folder(method.name, rate),
    }


def _outcome(
    setup: FederatedSetup, params: Params, rate: float, history: jaxfed.History, sent: float | None
) -> TrainingOutcome:
    evaluations = history.evaluations
    curves = {name: [before, *evaluations[name]] for name, before in setup.before.items()}
    samples = sum(history.rounds["samples"])
    return TrainingOutcome(
        setup.whole(params), rate, [0, *evaluations["round"]], curves[VALIDATION], curves, samples, sent
    )


class _Best:
    """The best parameters evaluated so far; saved in a folder of their own, so that a resumed run still has them."""

    def __init__(self, accepted: float, params: Params, directory: Path | None):
        self.accepted, self.params, self._directory = accepted, params, directory
        if directory is not None and checkpoint.latest(directory) is not None:
            self.params = checkpoint.load(directory, like={"params": params})["params"]
            self.accepted = checkpoint.manifest(directory).metadata["accepted"]

    def offer(self, accepted: float, params: Params) -> None:
        """Keep these parameters if their acceptance is larger."""
        if accepted <= self.accepted:
            return
        self.accepted, self.params = accepted, params
        if self._directory is not None:
            step = (checkpoint.latest(self._directory) or 0) + 1
            checkpoint.save(self._directory, step, {"params": params}, metadata={"accepted": accepted}, keep=1)
