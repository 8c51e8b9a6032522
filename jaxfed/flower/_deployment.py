"""The server of a run whose clients are on other machines: one round of it, and what is saved."""

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flwr.app import ArrayRecord, RecordDict
from jaxtyping import PyTree

from jaxfed.core import keys
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import ClientRow, ClientUpdate, Plan, RoundInfo, Server
from jaxfed.core.samplers import Sampler, weights_of
from jaxfed.data import Epochs, Steps
from jaxfed.flower._instruction import Instruction, described, same_algorithm, sample_of
from jaxfed.flower._records import RefusedError, pack, unpack
from jaxfed.flower._roster import Roster, log
from jaxfed.flower._rows import NEVER
from jaxfed.flower._training import server_round, update_like
from jaxfed.rows.rounds import RoundConfig
from jaxfed.run.history import History, RunState
from jaxfed.run.identity import OF_CLIENT, Identity, batch_size_of, of_client, of_server, of_start
from jaxfed.run.state import check_alone, copied, first_row


@dataclasses.dataclass(frozen=True)
class Replies:
    """How a round collects the replies of its clients.

    Attributes:
        patience: seconds that a round waits at its beginning for drawn clients that are not connected. The first round
            waits until there is a client.
        timeout: seconds that a round waits for replies; None waits without limit.
        plan: how the replies are added up; None: `jaxfed.vmap()`.
    """

    patience: float = 60.0
    timeout: float | None = 3600.0
    plan: Plan | None = None

    def __post_init__(self) -> None:
        check_range("patience", self.patience, least=0.0)
        if self.timeout is not None:
            check_range("timeout", self.timeout, least=0.0)


class Deployment:
    """The server of a run whose clients are on other machines.

    Attributes:
        server: after the rounds played so far.
        run: name of the run, the same after every resumption.
        counted: last round in which each client's reply was counted, int32 [N], −1 for none.
    """

    def __init__(self, config: RoundConfig, sampler: Sampler, server: Server, roster: Roster, replies: Replies) -> None:
        self.server, self.run = server, uuid.uuid4().hex[:12]
        self.counted = np.full(int(server.num_clients), NEVER, np.int32)
        if not isinstance(config.batching, Steps | Epochs):
            raise ValueError(f"expected Steps or Epochs, which clients can build, got {config.batching}; pass one")
        self._batching = config.batching
        self._config, self._sampler, self._roster, self._collect = config, sampler, roster, replies
        self._first = config.algorithm.init_client(server.params, server.model_state)
        self._finish = server_round(config)
        self._expected: ClientUpdate | None = None
        self._identity: Identity | None = None
        self._begun = server
        self._kept: dict[int, np.ndarray] = {}

    @property
    def first(self) -> ClientRow:
        """Row of a client that was never drawn."""
        return self._first

    def play(self, ids: np.ndarray) -> tuple[RoundInfo, dict[str, int]]:
        """Play a round with the clients `ids` [C], −1 in empty slots; return its info, and counts of the missing."""
        drawn, number = ids[ids >= 0].tolist(), int(self.server.round)
        while not (here := self._roster.connected(drawn, self._collect.patience)) and not self._roster.members:
            log.warning("no client is connected; still waiting")
        replies = self._roster.exchange(self._instructions(here), str(number), self._collect.timeout)
        updates = self._checked(replies)
        slots = np.array([client if client in updates else -1 for client in ids.tolist()], np.int32)
        stacked = self._stacked([updates.get(client) for client in slots.tolist()])
        self.server, info = self._finish(self.server, slots, self._weights(ids), stacked, keys.entropy_key())
        info = jax.tree.map(np.asarray, info)
        self.counted[slots[info.used]] = number
        return info, {"num_missing": len(drawn) - len(replies), "num_refused": len(replies) - len(updates)}

    def _weights(self, ids: np.ndarray) -> np.ndarray | None:
        """Return the weights [C] of a round's slots."""
        lengths = np.ones(len(self.counted), np.int32)
        for client, member in self._roster.members.items():
            lengths[client] = member.samples
        weights = weights_of(self._sampler, lengths)
        return None if weights is None else weights[np.maximum(ids, 0)]

    def _instructions(self, clients: list[int]) -> dict[int, RecordDict]:
        """Return what every client is sent; a client that was never counted gets its first row as well."""
        traced = {name: each for name, each in self.identity({}).items() if name in OF_CLIENT}
        algorithm, server = same_algorithm(self._config.algorithm.hyperparameters, traced), pack(self.server)
        first, nothing = pack(self._first, zeros=False), ArrayRecord()
        since = self._kept[min(self._kept)] if self._kept else self.counted
        contents = {}
        for client in clients:
            counted = int(self.counted[client])
            instruction = Instruction(
                self.run, counted, int(since[client]), self._config.seed, self._batching, algorithm
            )
            row = first if counted == NEVER else nothing
            contents[client] = RecordDict({"instruction": instruction.to_record(), "server": server, "row": row})
        return contents

    def identity(self, saved: Identity) -> Identity:
        """Return what the run computes, for samples of the clients' shapes or of the checkpoint's; traced once."""
        if self._identity is None:
            members = self._roster.members.values()
            sample = next((each.sample for each in members), None) or sample_of(saved["sample"])
            arguments = self._config.algorithm, self.server, sample, batch_size_of(self._batching)
            slots = self._sampler.num_slots(len(self.counted))
            own = of_client(*arguments) | of_server(*arguments, slots)
            self._identity = {**own, "sample": described(sample), "starting parameters": of_start(self._begun)}
        return self._identity

    def _checked(self, replies: Mapping[int, RecordDict]) -> dict[int, ClientUpdate]:
        """Return the replies with the structure, shapes and dtypes of an update."""
        like, updates = self._like(), {}
        for client, reply in replies.items():
            try:
                records = reply.array_records
                message = unpack(records.get("message", ArrayRecord()), like.message, what="the message")
                info = unpack(records.get("info", ArrayRecord()), like.info, what="the info")
                updates[client] = like._replace(message=message, info=info)
            except RefusedError as error:
                log.warning("client %d is refused: %s", client, error)
        return updates

    def _like(self) -> ClientUpdate:
        """Return shapes and dtypes of an update, for samples of the clients' shapes."""
        if self._expected is None:
            sample = next(iter(self._roster.members.values())).sample
            self._expected = update_like(self._config.algorithm, self.server, sample)
        return self._expected

    def _stacked(self, updates: Sequence[ClientUpdate | None]) -> ClientUpdate:
        """Return leaves [C, ...], zeros in empty slots."""
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._like())
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(update or empty for update in updates))

    def begin(self, state: RunState | None) -> History:
        """Continue from a state, or begin; raises ValueError for a server whose clients' rows belong to another run."""
        if state is None:
            check_alone(self._config.algorithm, self.server, self._first, "pass checkpoint=, or the state of an error")
            return History()
        if not (isinstance(state.rows, Mapping) and state.rows.keys() == {"counted", "run"}):
            raise ValueError("expected a state that an error of jaxfed.flower.serve carries, got one of another run")
        self.restore({"server": self.server, "rows": state.rows})
        self._first = first_row(self._config.algorithm, self.server, state)
        return copied(state.history)

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """See `jaxfed.run.resume.Saved`."""
        self._kept = {each: counted for each, counted in self._kept.items() if each >= oldest}
        self._kept[step] = self.counted.copy()
        return {"server": self.server, "rows": {"counted": self.counted.copy(), "run": self.run}}

    def describe(self) -> dict[str, Any]:
        """See `jaxfed.run.resume.Saved`."""
        return {}

    def like(self, facts: Mapping[str, Any]) -> dict[str, PyTree]:
        """See `jaxfed.run.resume.Saved`."""
        return {"server": self.server, "rows": {"counted": self.counted, "run": self.run}}

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """See `jaxfed.run.resume.Saved`."""
        self.server = snapshot["server"]
        self.counted, self.run = snapshot["rows"]["counted"].copy(), snapshot["rows"]["run"]

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """See `jaxfed.run.resume.Saved`: clients keep the rows of this checkpoint."""
        self._kept[step] = rows()["counted"]
