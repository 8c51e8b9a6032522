"""A Flower grid without processes: every message is answered at once by the ClientApp of its node."""

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class LoopbackGrid(Grid):
    """One node per client, numbered from 100; `trouble(round, client, reply)` replaces a reply."""

    def __init__(self, apps, trouble=lambda number, client, reply: reply):
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.nodes = {100 + client: (app, client) for client, app in enumerate(apps)}
        self.trouble, self.replies, self.sent = trouble, {}, 0

    def reconnect(self, client):
        """The client's node is lost and comes back as another."""
        (old,) = (node for node, (_, each) in self.nodes.items() if each == client)
        self.nodes[old + 100] = self.nodes.pop(old)

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        return [self._answer(message) for message in messages]

    def pull_messages(self, message_ids):
        return [self.replies.pop(each) for each in message_ids if each in self.replies]

    def _answer(self, message):
        self.sent += 1
        name = str(self.sent)
        message.metadata.__dict__["_message_id"] = name
        app, client = self.nodes[message.metadata.dst_node_id]
        number = message.metadata.group_id
        try:
            reply = app(message, Context(1, 1, {"partition-id": client}, RecordDict(), {}))
            reply = self.trouble(int(number), client, reply) if number.isdecimal() else reply
        except Exception as error:
            reply = Message(Error(1, str(error)), reply_to=message)
        if reply is not None:
            self.replies[name] = reply
        return name

    def set_run(self, run):
        raise NotImplementedError

    def run(self):
        raise NotImplementedError

    def create_message(self, *arguments, **named):
        raise NotImplementedError

    def send_and_receive(self, *arguments, **named):
        raise NotImplementedError
