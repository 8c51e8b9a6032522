"""The whole state of a run in memory: taken, attached to an exception, and continued."""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.core.protocol import ClientRow, FederatedAlgorithm, Server
from jaxfed.data.batches import ClientData
from jaxfed.layout.sharding import put
from jaxfed.rows.engine import Engine, Store
from jaxfed.run.history import History, RunState
from jaxfed.run.resume import Saved

OWN_STEP = 2**62
"""Step under which a store locks the rows of the state that a run began from; no checkpoint has this number."""


def take(engine: Saved, store: Store | None, history: History) -> RunState:
    """Return the state of a run between two rounds; the engine is closed after it, or continues by `put_back` only."""
    saved = engine.snapshot(int(engine.server.round), 0)
    return RunState(saved["server"], saved["rows"], engine.describe(), store, copied(history), engine.first)


def copied(history: History) -> History:
    """Return a copy for another run to add to."""
    return dataclasses.replace(history, state=None, seconds=[*history.seconds])


def put_back(engine: Engine, state: RunState, store: Store) -> History:
    """Restore a state in an engine that began with the state's server; return a copy of its history.

    Raises:
        ValueError: a state of another store, or of an algorithm whose clients keep something else.
    """
    if state.store != store:
        raise ValueError(f"expected the store of the state, {state.store}, got {store}; pass store=state.store")
    like = engine.like(state.facts)["rows"]
    expected, got = _shapes(like), _shapes(state.rows)
    if expected != got:
        raise ValueError(
            f"expected client rows like those of this algorithm ({expected}), got a state with {got}; "
            "pass the algorithm that made the state, or start again with algorithm.init(state.server.params, ...)"
        )
    engine.restore({"server": engine.server, "rows": jax.tree.map(_copied, state.rows, like)})
    engine.lock(OWN_STEP, lambda: state.rows)
    return copied(state.history)


def _copied(leaf: Any, like: Any) -> Any:
    """Return a copy with the sharding of `like`: rounds donate these buffers."""
    if not isinstance(leaf, jax.Array):
        return np.array(leaf)
    return jax.jit(jnp.copy)(put(leaf, getattr(like, "sharding", None)))


def _shapes(rows: Any) -> str:
    pairs = jax.tree_util.tree_leaves_with_path(rows)
    return ", ".join(f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in pairs) or "none"


def check_clients(server: Server, data: ClientData) -> int:
    """Return N; raise ValueError for data of other clients than the server's, or a client without samples."""
    expected, got = int(server.num_clients), len(data.lengths)
    if expected != got:
        raise ValueError(f"the server was made for {expected} clients, the data has {got}; call init(params, {got})")
    if (empty := np.flatnonzero(np.asarray(data.lengths) == 0)).size:
        raise ValueError(f"client {empty[0]}: expected at least one sample to train on, got none; leave the client out")
    return got


def diverged(number: int, clients: np.ndarray) -> FloatingPointError:
    """Return the error of a round without one finite result."""
    return FloatingPointError(
        f"round {number}: every client returned NaN or infinity: clients {clients.tolist()}; "
        "lower client_learning_rate, set clip_norm, or look at their data"
    )


def first_row(algorithm: FederatedAlgorithm, server: Server, begun: RunState | None) -> ClientRow:
    """Return the row of a client that was never drawn: that of the run that is continued, else from the server."""
    row = algorithm.init_client(server.params, server.model_state)
    return begun.first if begun is not None and _shapes(begun.first) == _shapes(row) else row


def check_alone(algorithm: FederatedAlgorithm, server: Server, row: ClientRow, remedy: str) -> None:
    """Raise ValueError for a server that has done rounds, without the rows that its clients keep."""
    done = int(server.round)
    if done and jax.tree.leaves(row):
        name = algorithm.hyperparameters.get("algorithm", "this algorithm")
        raise ValueError(
            f"expected the clients' rows with a server that has done {done} rounds, got the server alone: clients of "
            f"{name} keep {_shapes(jax.eval_shape(lambda: row))} between rounds; {remedy}, or start again with "
            "algorithm.init(server.params, num_clients)"
        )


@contextmanager
def carrying(engine: Saved, store: Store | None, history: History) -> Iterator[None]:
    """Give an exception that ends the block an attribute `state`: after the last whole round, None where it is lost."""
    first = int(engine.server.round)
    try:
        yield
    except BaseException as error:
        _attach(error, _whole(engine, store, history, first))
        raise


def _whole(engine: Saved, store: Store | None, history: History, first: int) -> RunState | None:
    """Return the state, or None inside a round: its rows are then partly written, or donated to the program."""
    try:
        if int(engine.server.round) != history.rounds.last().get("round", first):
            return None
        state = take(engine, store, history)
        deleted = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array) and leaf.is_deleted()]
        return None if deleted else state
    except Exception:  # the cause of the exception may also be why the state cannot be read
        return None


def _attach(error: BaseException, state: RunState | None) -> None:
    with suppress(AttributeError):  # an exception with slots
        error.state = state  # type: ignore[attr-defined]
        if state is None:
            error.add_note("this happened inside a round, which cannot be taken back: error.state is None")
        else:
            error.add_note(
                f"error.state is the run after round {int(state.server.round)}, with its history: "
                "jaxfed.simulate(algorithm, error.state, ...) continues from there"
            )


def warn_if_done(done: int, rounds: int, where: str) -> None:
    """Warn that a run has done all of `rounds` already, and returns what was there."""
    if done and done >= rounds:
        warnings.warn(nothing_trained(done, rounds, where), NothingTrainedWarning, stacklevel=3)


def nothing_trained(done: int, rounds: int, where: str) -> str:
    """Return the message for such a run."""
    return (
        f"nothing was trained or evaluated: {where} has done {done} rounds already, and rounds={rounds} counts from "
        f"the start; server and history are as they were; pass rounds={done + 1} or more to go on, or begin a new run"
    )


class NothingTrainedWarning(UserWarning):
    """A run had done all its rounds before it began."""
