"""Evaluation of every client's own model: what the client keeps, or what some local steps make of the server's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import ClientContext, LocalOptions, LocalRule, Solver, gradients
from jaxfed.core import AnyLossFn, keys, tree
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import ClientRow, Cohort, FederatedAlgorithm, Fetch, Server
from jaxfed.core.types import Key
from jaxfed.data.batches import ClientData, draw_indices
from jaxfed.data.batching import Batching
from jaxfed.data.streams import check_resident
from jaxfed.rows.rounds import INDEX, fetched
from jaxfed.run.evaluation import RowsOf
from jaxfed.run.metrics import Measure, PerClient, means_of, summarised

Personalise = Callable[[Server, Cohort, Key, Fetch], tuple[Any, PyTree]]
"""`personalise(server, member, key, fetch) -> (params, model_state)`, the model of one client.

`member` is one slice of a cohort: the client's id, its row and its training batches, as `FederatedAlgorithm` has it.
"""


def own_model(algorithm: FederatedAlgorithm) -> Personalise:
    """Return the model that clients of an algorithm use: the server's, or what they keep (Ditto, FedRep, FedBN).

    Raises:
        ValueError: an algorithm that was not composed by `jaxfed.algorithms.parts.compose`.
    """
    if algorithm.parts is None or algorithm.parts.personal is None:
        raise ValueError(
            "expected an algorithm with `parts.personal`, got one without; build it with "
            "jaxfed.algorithms.parts.compose"
        )
    personal = algorithm.parts.personal
    return lambda server, member, key, fetch: personal(server, member.rows)


def fine_tuned(
    algorithm: FederatedAlgorithm,
    loss_fn: AnyLossFn | None = None,
    *,
    client_learning_rate: float | None = None,
    **options: Unpack[LocalOptions],
) -> Personalise:
    """Return the clients' models after local steps of plain gradient descent, x ← x − η·∇Fᵢ(x; ξ), from `own_model`.

    The number of steps is that of the batching, which such an evaluation needs. Nothing of it is kept.

    Args:
        algorithm: of the run.
        loss_fn: F; by default the algorithm's.
        client_learning_rate: η; by default 0.1, or 1 with a client optimiser, which has its own.
        **options: see `jaxfed.algorithms.parts.LocalRule`, such as `client_optimiser`.

    Raises:
        ValueError: an algorithm that was not composed, or a hyperparameter out of range.
    """
    begin, parts = own_model(algorithm), algorithm.parts
    assert parts is not None
    loss_fn = loss_fn or parts.loss_fn
    if loss_fn is None:
        raise ValueError("expected a loss function to fine-tune with, got an algorithm that names none; pass loss_fn=")
    if client_learning_rate is None:
        client_learning_rate = 0.1 if options.get("client_optimiser") is None else 1.0
    solver = Solver(loss_fn, gradients.plain, LocalRule(client_learning_rate=client_learning_rate, **options))

    def personalise(server: Server, member: Cohort, key: Key, fetch: Fetch) -> tuple[Any, PyTree]:
        if not member.batches["mask"].shape[0]:
            raise ValueError("expected batches to fine-tune on, got none; pass train= and batching= to the evaluation")
        params, model_state = begin(server, member, key, fetch)
        rate = solver.rule.learning_rate(jnp.int32(0))
        local = solver(ClientContext(server, params, (), model_state, member.batches, fetch, rate, key))
        return local.params, local.model_state

    return personalise


def per_client_model(
    personalise: Personalise,
    measure: Measure,
    test: ClientData,
    train: ClientData | None = None,
    batching: Batching | None = None,
    *,
    seed: int = 0,
    batch_size: int = 64,
    clients_at_once: int = 16,
) -> Callable[[Server, RowsOf], PerClient]:
    """Return `evaluate(server, rows) -> PerClient`: every client's own model on its own samples.

    Args:
        personalise: `own_model(algorithm)`, `fine_tuned(algorithm, ...)` or a function of your own.
        measure: `measure(params, batch)` -> {name: numbers [B]}; params is (params, model_state) where there is one.
        test: N clients' samples to evaluate on; a client without samples gets NaN.
        train: the clients' samples for local steps; they and `batching` may be left out where there are none.
        batching: `jaxfed.Steps(k, batch_size)` for k local steps, or `Epochs`.
        seed: of the batches, which are the same at every evaluation.
        batch_size: samples to evaluate on at a time.
        clients_at_once: models in memory at a time; a mesh of the run must divide it.

    Raises:
        ValueError: no sample at all, training samples without batching or of another number of clients.
    """
    check_range("batch_size", batch_size, least=1, whole=True)
    check_range("clients_at_once", clients_at_once, least=1, whole=True)
    _check(test, train, batching)
    models = jax.jit(functools.partial(_sums, personalise, measure, batching, seed, batch_size, _longest(test, train)))
    num_clients = len(test.lengths)

    def evaluate(server: Server, rows: RowsOf) -> PerClient:
        parts = []
        for first in range(0, num_clients, clients_at_once):
            ids = np.arange(first, first + clients_at_once, dtype=np.int32)
            ids = np.where(ids < num_clients, ids, -1)
            parts.append(models(server, rows(ids), (test, train), ids))
        sums = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num_clients], *parts)
        return means_of(sums, test)

    return evaluate


def personal_evaluator(
    personalise: Personalise,
    measure: Measure,
    test: ClientData,
    train: ClientData | None = None,
    batching: Batching | None = None,
    *,
    lower_is_better: Sequence[str] = ("loss",),
    prefix: str = "personal_",
    **options: Any,
) -> Callable[[Server, RowsOf], dict[str, float]]:
    """Return `evaluate(server, rows)` for `jaxfed.Report`: the `summary` of `per_client_model`, names with a prefix.

    Args:
        personalise: see `per_client_model`, as of the next four.
        measure: of every sample.
        test: samples to evaluate on.
        train: samples of local steps.
        batching: of local steps.
        lower_is_better: names of which a large number is a bad one.
        prefix: of every name.
        **options: see `per_client_model`.
    """
    evaluate = per_client_model(personalise, measure, test, train, batching, **options)
    report = summarised(evaluate, lower_is_better, prefix)
    return lambda server, rows: report(server, rows)


def _longest(test: ClientData, train: ClientData | None) -> tuple[int, int]:
    return int(np.max(test.lengths)), 0 if train is None else int(np.max(train.lengths))


def _check(test: ClientData, train: ClientData | None, batching: Batching | None) -> None:
    for data in (test, train):
        if data is not None:
            check_resident(data, "personalised evaluation")
    if not int(np.sum(test.lengths)):
        raise ValueError("expected at least one sample to evaluate on, got none; leave the evaluation out")
    if (train is None) != (batching is None):
        raise ValueError("expected training samples and a batching for local steps, got one of them; pass both")
    if train is not None and len(train.lengths) != len(test.lengths):
        raise ValueError(
            f"expected training samples of the {len(test.lengths)} clients to evaluate, got {len(train.lengths)}"
        )


def _sums(
    personalise: Personalise,
    measure: Measure,
    batching: Batching | None,
    seed: int,
    batch_size: int,
    longest: tuple[int, int],
    server: Server,
    rows: ClientRow,
    data: tuple[ClientData, ClientData | None],
    ids: Array,
) -> dict[str, Array]:
    """Return sums over the samples of clients `ids`, by name, [C]."""
    test, train = data
    of_clients = keys.client_keys(keys.training_key(seed), ids)
    batches: dict[str, Array] = {"mask": jnp.zeros((len(ids), 0, 1), bool)}
    if train is not None and batching is not None:
        index, mask = draw_indices(train, ids, keys.batch_key(seed), batching, longest[1])
        batches = {INDEX: index, "mask": mask}
    fetch = functools.partial(fetched, train) if train is not None else lambda batch: batch

    def one(member: Cohort, key: Key) -> dict[str, Array]:
        params, model_state = personalise(server, member, key, fetch)
        variables = (params, model_state) if jax.tree.leaves(model_state) else params
        return _measured(measure, variables, test, member.ids, longest[0], batch_size)

    return jax.vmap(one)(Cohort(ids, rows, batches), of_clients)


def _measured(
    measure: Measure, variables: PyTree, test: ClientData, client: Array, longest: int, batch_size: int
) -> dict[str, Array]:
    """Return the sums over one client's samples, by name, []."""
    client = jnp.maximum(client, 0)
    size = min(batch_size, longest)

    def batch_sums(first: Array) -> dict[str, Array]:
        position = first + jnp.arange(size, dtype=jnp.int32)
        mask = position < test.lengths[client]
        place = test.offsets[client] + jnp.where(mask, position, 0)
        sample = place if test.order is None else test.order[place]
        values = measure(variables, fetched(test, {INDEX: sample, "mask": mask}))
        wide = {name: each.astype(jnp.promote_types(each.dtype, jnp.float32)) for name, each in values.items()}
        return {name: tree.masked_sum(each, mask) for name, each in wide.items()}

    sums = jax.lax.map(batch_sums, jnp.arange(0, longest, size, dtype=jnp.int32))
    return {name: jnp.sum(each, axis=0) for name, each in sums.items()}
