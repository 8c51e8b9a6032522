"""A client, and what may go wrong with it once its row is saved: at the round:client of the run's configuration."""

import os
import pathlib
import time

from flower_app import task
from jaxfed import flower


def trouble(message, context, call_next):
    reply = call_next(message, context)
    here = f"{message.metadata.group_id}:{context.node_config['partition-id']}"
    if here == context.run_config["lose"]:
        raise RuntimeError("lost after the local work")
    if here == context.run_config["hang"]:
        pathlib.Path(context.run_config["directory"], "hanging").touch()
        parent = os.getppid()
        while os.getppid() == parent:  # until the test kills the SuperNode, and with it what it started
            time.sleep(0.05)
        os._exit(1)
    return reply


app = flower.client_app(
    lambda context: task.algorithm_of(context.run_config["algorithm"]),
    task.PROBLEM.params,
    lambda context: task.CLIENTS[context.node_config["partition-id"]],
    lambda context: pathlib.Path(context.run_config["directory"], "rows"),
    compilation_cache=pathlib.Path("programs").absolute(),
    mods=[trouble],
)
