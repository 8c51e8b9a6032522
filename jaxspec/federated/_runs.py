"""One method at one learning rate; the grid of learning rates; methods side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxfed
from jaxfed import checkpoint
from jaxfed.core.samplers import cohorts
from jaxspec.drafts import num_streams
from jaxspec.federated._examples import Continued, Examples, accepted_length, mean_accepted
from jaxspec.federated._methods import Federation, Method, method_of
from jaxspec.models.base import Array, Model, Params
from jaxspec.training.streams import streaming_loss
from jaxspec.training.train import LossFn, distillation_loss

#: The judge by whom learning rates and the centralised step are chosen.
VALIDATION = "validation"


class Problem(NamedTuple):
    """What a draft is trained and judged on.

    Attributes:
        clients: examples of each client.
        judges: continuations by name, ``VALIDATION`` among them.
    """

    clients: list[Examples]
    judges: dict[str, Continued]


class Outcome(NamedTuple):
    """One method at one learning rate, the best of the grid if there was one.

    Attributes:
        params: the draft; of clients that trained alone theirs, by client.
        learning_rate: by accepted length on validation roles.
        rounds, accepted: that curve.
        judged: the curves of all judges.
        samples: sequences trained on, as often as they came.
        message_bytes: what a client sends a round; None where nothing is sent.
    """

    params: Params
    learning_rate: float
    rounds: list[int]
    accepted: list[float]
    judged: dict[str, list[float]]
    samples: int
    message_bytes: float | None


class Report(NamedTuple):
    """Accepted length (mean num_accepted a step) on unseen text before and after, and each method's outcome."""

    acceptance: dict[str, float]
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Setup:
    """What all runs share.

    Attributes:
        draft: where they start.
        problem: clients and judges.
        settings: rounds and steps.
        window: γ of every accepted length.
        directory: of checkpoints, a folder for each run; the same run goes on from there.
        progress: show bars.
    """

    draft: Model
    problem: Problem
    settings: Federation = Federation()
    window: int = 7
    directory: Path | None = None
    progress: bool = True

    @cached_property
    def before(self) -> dict[str, float]:
        """What the judges say of the draft as it is."""
        return self.judge(self.draft.params)

    @property
    def loss(self) -> LossFn:
        """Of a plain draft, or of one with streams."""
        network = self.draft.network
        return streaming_loss(network) if num_streams(network) else distillation_loss(network)

    def judge(self, params: Params) -> dict[str, float]:
        """Accepted length by judge."""
        network = self.draft.network
        return {name: accepted_length(network, params, d, self.window) for name, d in self.problem.judges.items()}

    def folder(self, *names: Any) -> Path | None:
        """Where a run keeps something."""
        return None if self.directory is None else self.directory / "-".join(map(str, names))


def compare(
    draft: Model,
    clients: list[Examples],
    validation: Continued,
    unseen: Continued,
    settings: Federation,
    *,
    names: Sequence[str] = ("fedspeed", "fedavg", "centralised"),
    window: int = 7,
    directory: Path | None = None,
    progress: bool = True,
) -> Report:
    """Trains a draft by the ``names`` of ``METHODS``, at equal numbers of samples.

    Every method runs the whole learning-rate grid and is judged on validation roles: the federated ones by their last
    round, the centralised one, as an upper bound, by its best. Each run has its checkpoints in ``directory``.
    """
    setup = Setup(draft, Problem(clients, {VALIDATION: validation}), settings, window, directory, progress)
    report = Report({"before": accepted_length(draft.network, draft.params, unseen, window)}, {})
    for name in names:
        outcome = best(setup, name)
        report.outcomes[name] = outcome
        report.acceptance[name] = accepted_length(draft.network, outcome.params, unseen, window)
    return report


def best(setup: Setup, method: str | Method) -> Outcome:
    """The learning rate of the grid whose draft validation roles accept most of."""
    outcomes = [run(setup, method, rate) for rate in setup.settings.learning_rates]
    return max(outcomes, key=lambda outcome: outcome.accepted[-1])


def run(setup: Setup, method: str | Method, rate: float) -> Outcome:
    """One method at one learning rate.

    Raises:
        ValueError: an unknown method, or a cohort larger than the population.
    """
    method = method_of(method)
    algorithm = method.algorithm(setup.loss, setup.settings, rate, len(setup.problem.clients))
    trained = {"federated": _federated, "pooled": _pooled, "alone": _alone}[method.training]
    return trained(setup, method, algorithm, rate)


def _federated(setup: Setup, method: Method, algorithm: jaxfed.FederatedAlgorithm, rate: float) -> Outcome:
    s, clients = setup.settings, setup.problem.clients
    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(setup.draft.params, len(clients)),
        jaxfed.data.client_data(clients),
        sampler=method.sampler(s, len(clients)),
        local_steps=s.local_steps,
        evaluate=setup.judge,
        **_options(setup, method, rate),
    )
    return _outcome(setup, server.params, rate, history, history.last_known("sent_bytes"))


def _pooled(setup: Setup, method: Method, algorithm: jaxfed.FederatedAlgorithm, rate: float) -> Outcome:
    """One client with all text: a local step of it for every one of a cohort; the best of what was judged."""
    s, clients = setup.settings, setup.problem.clients
    everything = {name: np.concatenate([client[name] for client in clients]) for name in clients[0]}
    kept = _Best(setup.before[VALIDATION], setup.draft.params, setup.folder(method.name, rate, "best"))

    def judge(params: Params) -> dict[str, float]:
        found = setup.judge(params)
        kept.offer(found[VALIDATION], params)
        return found

    _, history = jaxfed.simulate(
        algorithm,
        algorithm.init(setup.draft.params, 1),
        jaxfed.data.client_data([everything]),
        cohort_size=1,
        local_steps=s.local_steps * s.cohort_size,
        evaluate=judge,
        **_options(setup, method, rate),
    )
    found = _outcome(setup, kept.params, rate, history, None)
    until = int(np.argmax(found.accepted)) + 1
    judged = {name: curve[:until] for name, curve in found.judged.items()}
    return found._replace(rounds=found.rounds[:until], accepted=found.accepted[:until], judged=judged)


def _options(setup: Setup, method: Method, rate: float) -> dict[str, Any]:
    """What every simulation is given. One client after the other is the fastest plan on a CPU."""
    s = setup.settings
    return {
        "rounds": s.rounds,
        "batch_size": s.batch_size,
        "evaluate_every": s.evaluate_every,
        "seed": s.seed,
        "plan": jaxfed.map() if jax.default_backend() == "cpu" else jaxfed.vmap(),
        "checkpoint": setup.folder(method.name, rate),
        "progress": setup.progress,
    }


def _outcome(setup: Setup, params: Params, rate: float, history: jaxfed.History, sent: float | None) -> Outcome:
    found = history.evaluations
    judged = {name: [before, *found[name]] for name, before in setup.before.items()}
    samples = sum(history.rounds["samples"])
    return Outcome(params, rate, [0, *found["round"]], judged[VALIDATION], judged, samples, sent)


def _alone(setup: Setup, method: Method, algorithm: jaxfed.FederatedAlgorithm, rate: float) -> Outcome:
    """Clients are drawn and their batches made as in a federation, but each goes on from its own draft."""
    s, clients, start = setup.settings, setup.problem.clients, setup.draft.params
    data, batching = jaxfed.data.client_data(clients), jaxfed.data.Steps(s.local_steps, s.batch_size)
    longest, cohort = int(np.max(data.lengths)), cohorts(method.sampler(s, len(clients)), s.seed, len(clients))
    draw = jax.jit(lambda ids, key: jaxfed.data.draw_batches(data, ids, key, batching, longest))
    train, key = jax.jit(_trained_on(algorithm)), jax.random.key(s.seed)
    own: dict[int, Params] = {}
    samples, rounds, judged = 0, [0], [judge_own(setup, own)]
    bar = tqdm(range(1, s.rounds + 1), f"{method.name} {rate:g}", unit="round", disable=not setup.progress)
    for number in bar:
        ids = cohort(number - 1)
        round_key = jax.random.fold_in(key, number)
        batches = draw(jnp.asarray(ids), round_key)
        samples += int(jnp.sum(batches["mask"]))
        for slot in np.flatnonzero(ids >= 0).tolist():
            client = int(ids[slot])
            mine = {name: array[slot] for name, array in batches.items()}
            own[client] = train(own.get(client, start), mine, jax.random.fold_in(round_key, client), number - 1)
        if number % s.evaluate_every == 0 or number == s.rounds:
            rounds.append(number)
            judged.append(judge_own(setup, own))
    curves = {name: [each[name] for each in judged] for name in judged[0]}
    return Outcome(own, rate, rounds, curves[VALIDATION], curves, samples, None)


def _trained_on(algorithm: jaxfed.FederatedAlgorithm) -> Any:
    """(params, batches [K, B, ...], key, round) → params after one client's local steps with the round's ηₜ."""

    def train(params: Params, batches: Mapping[str, Any], key: Any, number: Array) -> Params:
        server = algorithm.init(params, 1)._replace(round=jnp.asarray(number, jnp.int32))
        member = jaxfed.Cohort(jnp.int32(0), algorithm.init_client(params), dict(batches))
        moved = algorithm.client_update(server, member, key).message.delta
        return jax.tree.map(jnp.add, params, moved)

    return train


def judge_own(setup: Setup, own: Mapping[int, Params]) -> dict[str, float]:
    """Accepted length by judge, where every client has a draft of its own (or still the first one).

    Rows that belong to a client are judged with its draft. Rows of nobody's are dealt out to the clients in turn: they
    tell what a stranger's draft is worth.
    """
    count, network = len(setup.problem.clients), setup.draft.network
    found = {}
    for name, data in setup.problem.judges.items():
        owners = np.arange(len(data.tokens)) % count if data.owners is None else np.asarray(data.owners)
        parts = [
            (own.get(int(client), setup.draft.params), data._replace(tokens=data.tokens[owners == client]))
            for client in np.unique(owners)
        ]
        found[name] = mean_accepted(parts, network, setup.window)
    return found


class _Best:
    """The best draft that a run has evaluated; kept in a folder of its own, so that a resumed run still has it."""

    def __init__(self, accepted: float, params: Params, directory: Path | None):
        self.accepted, self.params, self._directory = accepted, params, directory
        if directory is not None and checkpoint.latest(directory) is not None:
            self.params = checkpoint.load(directory, like={"params": params})["params"]
            self.accepted = checkpoint.manifest(directory).metadata["accepted"]

    def offer(self, accepted: float, params: Params) -> None:
        """Keeps these parameters if they accept more than the best so far."""
        if accepted <= self.accepted:
            return
        self.accepted, self.params = accepted, params
        if self._directory is not None:
            step = (checkpoint.latest(self._directory) or 0) + 1
            checkpoint.save(self._directory, step, {"params": params}, metadata={"accepted": accepted}, keep=1)
