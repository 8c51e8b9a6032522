"""The method "local-only": every client trains a draft of its own, and nothing is sent."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxfed
from jaxfed.core.samplers import cohorts
from jaxspec.federated._methods import FederatedMethod
from jaxspec.federated._setup import VALIDATION, FederatedSetup, TrainingOutcome
from jaxspec.models.base import Array, Params


def alone(
    setup: FederatedSetup, method: FederatedMethod, algorithm: jaxfed.FederatedAlgorithm, rate: float
) -> TrainingOutcome:
    """Draw clients and batches as in a federation, but continue each client from its own draft."""
    s, clients, start = setup.settings, setup.problem.clients, setup.sent.params
    data, batching = jaxfed.data.client_data(clients), jaxfed.data.Steps(s.local_steps, s.batch_size)
    longest, cohort = int(np.max(data.lengths)), cohorts(method.sampler(s, len(clients)), s.seed, len(clients))
    draw = jax.jit(lambda ids, key: jaxfed.data.draw_batches(data, ids, key, batching, longest))
    train, key = jax.jit(_local_training(algorithm, setup.sent.state)), jax.random.key(s.seed)
    own: dict[int, Params] = {}
    samples, rounds, evaluations = 0, [0], [_evaluate_own(setup, own)]
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
            evaluations.append(_evaluate_own(setup, own))
    curves = {name: [each[name] for each in evaluations] for name in evaluations[0]}
    return TrainingOutcome(
        {client: setup.whole(each) for client, each in own.items()},
        rate,
        rounds,
        curves[VALIDATION],
        curves,
        samples,
        None,
    )


def _local_training(algorithm: jaxfed.FederatedAlgorithm, state: Params = ()) -> Any:
    """Build (params, batches [K, B, ...], key, round) → params after a client's local steps with the round's ηₜ."""

    def train(params: Params, batches: Mapping[str, Any], key: Any, number: Array) -> Params:
        server = algorithm.init(params, 1, state)._replace(round=jnp.asarray(number, jnp.int32))
        member = jaxfed.Cohort(jnp.int32(0), algorithm.init_client(params, state), dict(batches))
        delta = algorithm.client_update(server, member, key).message.delta
        return jax.tree.map(jnp.add, params, delta)

    return train


def _evaluate_own(setup: FederatedSetup, own: Mapping[int, Params]) -> dict[str, float]:
    """Return the acceptance by evaluation set, where each client has its own draft (or still the first one).

    Rows with an owner are evaluated with the owner's draft. Rows without one are assigned to the clients in turn: they
    measure a draft on text of other clients.
    """
    count, accepted = len(setup.problem.clients), {}
    drafts = {client: setup.whole(each) for client, each in own.items()}
    for name, data in setup.problem.evaluation.items():
        owners = np.arange(len(data.tokens)) % count if data.owners is None else np.asarray(data.owners)
        parts = [
            (drafts.get(int(client), setup.draft.params), np.flatnonzero(owners == client))
            for client in np.unique(owners)
        ]
        accepted[name] = setup.learning.accepted(data, parts)
    return accepted
