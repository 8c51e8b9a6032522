"""Who is connected: Flower's nodes by client, and the exchange of messages with them."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from jaxfed.flower.instruction import Member
from jaxfed.flower.records import RefusedError

log = logging.getLogger("flwr.jaxfed")  # below Flower's own logger, so that `flwr log` shows it
FIRST_WAIT, LONGEST_WAIT = 0.05, 3.0
"""Seconds between two looks for replies: short at first, then longer and longer."""


class Roster:
    """Asks every node once which client it is. The newest node that says so stands for a client.

    Attributes:
      members: what every client said of itself, by id.
    """

    def __init__(self, grid: Grid, num_clients: int, timeout: float | None) -> None:
        self._grid, self._num_clients, self._timeout = grid, num_clients, timeout
        self._client_of: dict[int, int | None] = {}
        self._node_of: dict[int, int] = {}
        self.members: dict[int, Member] = {}

    def connected(self, clients: Iterable[int], patience: float) -> list[int]:
        """Those of `clients` that are connected, after waiting at most `patience` seconds for all of them."""
        wanted, waits = list(clients), _waits(patience)
        while True:
            self._refresh()
            here = [client for client in wanted if client in self._node_of]
            if len(here) == len(wanted) or not next(waits):
                return here

    def send(self, contents: Mapping[int, RecordDict], kind: str, group: str) -> dict[int, Message]:
        """Send each client its own message; return the replies that came in time, errors of clients logged."""
        nodes = {self._node_of[client]: content for client, content in contents.items()}
        replies = self._exchange(nodes, kind, group)
        return {self._client_of[node]: reply for node, reply in replies.items()}

    def _refresh(self) -> None:
        """Forget nodes that are gone, ask those that are new."""
        nodes = set(self._grid.get_node_ids())
        for node in [node for node in self._client_of if node not in nodes]:
            client = self._client_of.pop(node)
            if client is not None and self._node_of.get(client) == node:
                del self._node_of[client]
        new = {node: RecordDict() for node in sorted(nodes) if node not in self._client_of}
        for node, reply in self._exchange(new, "query", "who").items():
            self._client_of[node] = self._admit(node, reply)

    def _admit(self, node: int, reply: Message) -> int | None:
        try:
            member = Member.from_record(reply.content.config_records["member"], self._num_clients)
            for other in list(self.members.values())[:1]:
                member.check_like(other)
        except (RefusedError, KeyError) as error:
            log.warning("node %s is refused: %s", node, error)
            return None
        self.members[member.client] = member
        self._node_of[member.client] = node
        return member.client
