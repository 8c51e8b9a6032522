"""The server of a run whose clients are elsewhere: one round of it, and what is saved."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flwr.app import ArrayRecord, RecordDict
from jaxtyping import PyTree

from jaxfed.core import keys
from jaxfed.core.protocol import ClientUpdate, RoundInfo, Server
from jaxfed.data.batches import Epochs, Steps
from jaxfed.flower._instruction import Instruction, described, same_algorithm, sample_of
from jaxfed.flower._records import RefusedError, pack, unpack
from jaxfed.flower._roster import Roster, log
from jaxfed.flower._rows import NEVER
from jaxfed.flower._training import server_round, update_like
from jaxfed.rows.rounds import Recipe
from jaxfed.run import Weights, weights_of
from jaxfed.run.history import History, RunState
from jaxfed.run.identity import OF_CLIENT, Identity, batch_size_of, of_client, of_server, of_start
from jaxfed.run.state import check_alone, copied


class Seconds(NamedTuple):
    """How long a round waits: for drawn clients to connect, and for replies (None: for ever)."""

    patience: float
    timeout: float | None


class Deployment:
    """The server of a run whose clients are elsewhere, and what it knows of them.

    Attributes:
      server: after the rounds played so far.
      run: name of the run, the same after every resumption.
      counted: last round in which each client's reply was counted, int32 [N], −1 for none.
    """

    def __init__(
        self, recipe: Recipe, batching: Steps | Epochs, server: Server, roster: Roster, seconds: Seconds, slots: int
    ) -> None:
        self.server, self.run = server, uuid.uuid4().hex[:12]
        self.counted = np.full(int(server.num_clients), NEVER, np.int32)
        self._recipe, self._batching, self._roster, self._seconds = recipe, batching, roster, seconds
        self._slots = slots
        self._first = recipe.algorithm.init_client(server.params, server.model_state)
        self._finish = server_round(recipe)
        self._expected: ClientUpdate | None = None
        self._identity: Identity | None = None
        self._begun = server
        self._kept: dict[int, np.ndarray] = {}

    def play(self, ids: np.ndarray, client_weights: Weights) -> tuple[RoundInfo, dict[str, int]]:
        """One round with the clients `ids` [C], −1 in empty slots: its facts on the host, and who took no part."""
        drawn, number = ids[ids >= 0].tolist(), int(self.server.round)
        while not (here := self._roster.connected(drawn, self._seconds.patience)) and not self._roster.members:
            log.warning("no client is connected; still waiting")
        replies = self._roster.exchange(self._instructions(here), str(number), self._seconds.timeout)
        updates = self._checked(replies)
        slots = np.array([client if client in updates else -1 for client in ids.tolist()], np.int32)
        given = self._stacked([updates.get(client) for client in slots.tolist()])
        weights, noise_key = self._weights(ids, client_weights), keys.entropy_key()
        self.server, info = self._finish(self.server, slots, weights, given, noise_key)
        info = jax.tree.map(np.asarray, info)
        self.counted[slots[info.used]] = number
        return info, {"num_missing": len(drawn) - len(replies), "num_refused": len(replies) - len(updates)}

    def _weights(self, ids: np.ndarray, client_weights: Weights) -> np.ndarray | None:
        """Weights [C] of a round's slots."""
        lengths = np.ones(len(self.counted), np.int32)
        for client, member in self._roster.members.items():
            lengths[client] = member.samples
        weights = weights_of(client_weights, lengths)
        return None if weights is None else np.asarray(weights)[np.maximum(ids, 0)]

    def _instructions(self, clients: list[int]) -> dict[int, RecordDict]:
        """What every client is told; one that was never counted is given its first row as well."""
        known = {name: each for name, each in self.identity({}).items() if name in OF_CLIENT}
        algorithm, server = same_algorithm(self._recipe.algorithm.hyperparameters, known), pack(self.server)
        first, nothing = pack(self._first, zeros=False), ArrayRecord()
        since = self._kept[min(self._kept)] if self._kept else self.counted
        contents = {}
        for client in clients:
            counted = int(self.counted[client])
            told = Instruction(self.run, counted, int(since[client]), self._recipe.seed, self._batching, algorithm)
            row = first if counted == NEVER else nothing
            contents[client] = RecordDict({"instruction": told.to_record(), "server": server, "row": row})
        return contents

    def identity(self, saved: Identity) -> Identity:
        """What the run computes, for samples as clients hold them or as a checkpoint says; traced once."""
        if self._identity is None:
            members = self._roster.members.values()
            sample = next((each.sample for each in members), None) or sample_of(saved["sample"])
            given = self._recipe.algorithm, self.server, sample, batch_size_of(self._batching)
            own = of_client(*given) | of_server(*given, self._slots)
            self._identity = {**own, "sample": described(sample), "starting parameters": of_start(self._begun)}
        return self._identity

    def _checked(self, replies: Mapping[int, RecordDict]) -> dict[int, ClientUpdate]:
        """The replies that are as they should be."""
        like, found = self._like(), {}
        for client, reply in replies.items():
            try:
                records = reply.array_records
                message = unpack(records.get("message", ArrayRecord()), like.message, what="the message")
                info = unpack(records.get("info", ArrayRecord()), like.info, what="the facts")
                found[client] = like._replace(message=message, info=info)
            except RefusedError as error:
                log.warning("client %d is refused: %s", client, error)
        return found

    def _like(self) -> ClientUpdate:
        """Shapes and dtypes of an update, for samples as the clients hold them."""
        if self._expected is None:
            sample = next(iter(self._roster.members.values())).sample
            self._expected = update_like(self._recipe.algorithm, self.server, sample)
        return self._expected

    def _stacked(self, updates: Sequence[ClientUpdate | None]) -> ClientUpdate:
        """Leaves [C, ...], zeros in empty slots."""
        like = self._like()
        stacked = jax.tree.map(lambda leaf: np.zeros((len(updates), *leaf.shape), leaf.dtype), like)
        for slot, update in enumerate(updates):
            if update is not None:
                jax.tree.map(lambda every, one, slot=slot: every.__setitem__(slot, one), stacked, update)
        return stacked

    def begin(self, state: RunState | None) -> History:
        """Go on from a state, or begin; raises ValueError for a server whose clients' rows belong to another run."""
        if state is None:
            check_alone(self._recipe.algorithm, self.server, self._first, "pass checkpoint=, or the state of an error")
            return History()
        if not (isinstance(state.rows, Mapping) and state.rows.keys() == {"counted", "run"}):
            raise ValueError("expected a state that an error of jaxfed.flower.serve carries, got one of another run")
        self.restore({"server": self.server, "rows": state.rows})
        return copied(state.history)

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """See `jaxfed.run.resume.Playing`."""
        self._kept = {each: counted for each, counted in self._kept.items() if each >= oldest}
        self._kept[step] = self.counted.copy()
        return {"server": self.server, "rows": {"counted": self.counted.copy(), "run": self.run}}

    def describe(self) -> dict[str, Any]:
        """Nothing that `like` needs."""
        return {}

    def like(self, told: Mapping[str, Any]) -> dict[str, PyTree]:
        """See `jaxfed.run.resume.Playing`."""
        return {"server": self.server, "rows": {"counted": self.counted, "run": self.run}}

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """See `jaxfed.run.resume.Playing`."""
        self.server = snapshot["server"]
        self.counted, self.run = snapshot["rows"]["counted"].copy(), snapshot["rows"]["run"]

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """Remember what the clients must keep for a checkpoint."""
        self._kept[step] = rows()["counted"]
