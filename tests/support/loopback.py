"""Real processes that talk over loopback: one `python -m MODULE` for each tuple of arguments."""

import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack

from tests.support.environment import one_device


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def play_together(module, *arguments, seconds=600):
    """Runs all processes to their end; returns (output, return code) of each. All end with the call."""
    environment = {**one_device(), "JAX_PLATFORMS": "cpu"}
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in arguments]
        started = []
        for file, own in zip(files, arguments, strict=True):
            command = [sys.executable, "-m", module, *map(str, own)]
            started.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
            stack.callback(started[-1].wait)
            stack.callback(started[-1].kill)
        codes = [process.wait(timeout=seconds) for process in started]
        for file in files:
            file.seek(0)
        return [(file.read(), code) for file, code in zip(files, codes, strict=True)]
