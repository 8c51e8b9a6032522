"""Connected clients: Flower's nodes by client, and the exchange of messages with them."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from jaxfed.flower._instruction import Member
from jaxfed.flower._records import RefusedError

log = logging.getLogger("flwr.jaxfed")
"""Below Flower's own logger, so that `flwr log` shows its lines."""

FIRST_WAIT, LONGEST_WAIT = 0.05, 3.0
"""Seconds between two polls: short at first, then longer."""


class Roster:
    """Asks every node once for its client's id; of several nodes of one client the newest counts.

    Attributes:
        members: the description of every client that was ever connected, by id.
    """

    def __init__(self, grid: Grid, num_clients: int) -> None:
        self.members: dict[int, Member] = {}
        self._grid, self._num_clients = grid, num_clients
        self._node_of: dict[int, int] = {}
        self._known: set[int] = set()
        self._refused: set[int] = set()
        self._asked: dict[str, int] = {}

    def connected(self, clients: Iterable[int], patience: float) -> list[int]:
        """Return those of `clients` that are connected, after waiting at most `patience` seconds for all of them.

        Before the first client has connected it waits for any client, because it needs the shape of samples.
        """
        wanted = list(clients)
        self._known -= self._refused
        self._refused.clear()
        for _ in _polls(patience):
            self._poll()
            if self.members and all(client in self._node_of for client in wanted):
                break
        return [client for client in wanted if client in self._node_of]

    def exchange(self, contents: Mapping[int, RecordDict], group: str, timeout: float | None) -> dict[int, RecordDict]:
        """Send clients their instructions; return the replies that arrive in time, by client.

        A client that failed, or whose node was lost or replaced, is no longer waited for.
        """
        nodes = {client: self._node_of[client] for client in contents}
        waiting = self._push({nodes[client]: content for client, content in contents.items()}, "train", group, timeout)
        client_of, replies = {node: client for client, node in nodes.items()}, dict[int, RecordDict]()
        for _ in _polls(timeout):
            for node, reply in self._pull(waiting):
                if reply.has_error():
                    log.warning("client %d failed: %s", client_of[node], reply.error.reason)
                else:
                    replies[client_of[node]] = reply.content
            self._poll()
            for message in [each for each, node in waiting.items() if self._node_of.get(client_of[node]) != node]:
                log.warning("client %d is gone", client_of[waiting.pop(message)])
            if not waiting:
                break
        return replies

    def _poll(self) -> None:
        """Drop lost nodes, ask new ones, read the answers."""
        nodes = set(self._grid.get_node_ids())
        self._node_of = {client: node for client, node in self._node_of.items() if node in nodes}
        new = sorted(nodes - self._known)
        self._known = nodes
        self._asked = {message: node for message, node in self._asked.items() if node in nodes}
        self._asked |= self._push({node: RecordDict() for node in new}, "query", "who", None)
        for node, reply in self._pull(self._asked):
            try:
                self._admit(node, reply)
            except RefusedError as error:
                self._refused.add(node)
                log.warning("node %d is refused: %s", node, error)

    def _admit(self, node: int, reply: Message) -> None:
        if reply.has_error() or "member" not in reply.content.config_records:
            answer = reply.error.reason if reply.has_error() else "nothing"
            raise RefusedError(f"expected the id of a client, got {answer}; run jaxfed.flower.client_app there")
        member = Member.from_record(reply.content.config_records["member"], self._num_clients)
        others = [other for client, other in self.members.items() if client != member.client]
        if others:
            member.check_like(others[0])
        self.members[member.client] = member
        self._node_of[member.client] = node

    def _push(self, contents: Mapping[int, RecordDict], kind: str, group: str, ttl: float | None) -> dict[str, int]:
        """Send; return message id → node of the accepted messages."""
        messages = [Message(content, node, kind, ttl=ttl, group_id=group) for node, content in contents.items()]
        taken = list(self._grid.push_messages(messages)) if messages else []
        return {message: node for message, node in zip(taken, contents, strict=False) if message}

    def _pull(self, waiting: dict[str, int]) -> Iterator[tuple[int, Message]]:
        """Yield replies, each with its node, and remove them from `waiting`."""
        for reply in list(self._grid.pull_messages(list(waiting))) if waiting else []:
            yield waiting.pop(reply.metadata.reply_to_message_id), reply


def _polls(seconds: float | None) -> Iterator[None]:
    """Yield at growing intervals until the time is over (None: never), at least once."""
    until = None if seconds is None else time.monotonic() + seconds
    pause = FIRST_WAIT
    yield
    while until is None or time.monotonic() < until:
        time.sleep(pause if until is None else max(0.0, min(pause, until - time.monotonic())))
        pause = min(1.1 * pause, LONGEST_WAIT)
        yield
