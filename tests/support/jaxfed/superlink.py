"""Flower's own processes on loopback: one SuperLink, a SuperNode for every client, and runs of an app on them."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

from tests.support.environment import one_device
from tests.support.loopback import free_port

ROOT = pathlib.Path(__file__).parents[3]
APP = ROOT / "tests" / "support" / "jaxfed" / "flower_app"
SECONDS = 900


class SuperLink:
    """A context manager; output of the processes is in `log`. All end with it."""

    def __init__(self, folder: pathlib.Path, clients: int):
        self._folder, self._clients, self._stack = folder, clients, ExitStack()
        self._port, self.nodes = free_port(), {}
        scripts = pathlib.Path(sys.executable).parent
        self._environment = {
            **one_device(),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        }

    def __enter__(self):
        (self._folder / "home").mkdir()
        connection = f'[superlink.loopback]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        (self._folder / "home" / "config.toml").write_text(connection)
        flags = ["--insecure", "--port", self._port, "--disable-runtime-dependency-installation"]
        self._start("flower-superlink", *flags)
        until(lambda: _listening(self._port), "SuperLink")
        for client in range(self._clients):
            self.start_node(client)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def start_node(self, client):
        flags = ["--insecure", "--superlink", f"127.0.0.1:{self._port}", "--port", free_port()]
        self.nodes[client] = self._start("flower-supernode", *flags, "--node-config", f"partition-id={client}")

    def _start(self, *command):
        log = self._stack.enter_context((self._folder / "log").open("a"))
        process = subprocess.Popen(
            [str(each) for each in command], cwd=self._folder, env=self._environment, stdout=log, stderr=log
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self._stack.callback(_ended, process)
        return process

    @property
    def log(self):
        return (self._folder / "log").read_text()

    def run(self, directory, **config):
        """Begin a run, whose result lies in its directory at the end."""
        directory.mkdir(exist_ok=True)
        (directory / "result.json").unlink(missing_ok=True)
        settings = " ".join(
            f"{name}={json.dumps(value)}" for name, value in {**config, "directory": str(directory)}.items()
        )
        command = ["flwr", "run", str(APP), "loopback", "--run-config", settings]
        done = subprocess.run(command, cwd=self._folder, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log}"

    def history(self, directory):
        """The history of a run that has ended."""
        result = json.loads(self.until(directory / "result.json").read_text())
        assert "error" not in result, f"{result['error']}\n{self.log}"
        return result["history"]

    def until(self, path):
        """Wait for a file."""
        until(path.exists, path.name, lambda: self.log)
        return path


def until(holds, what, log=lambda: ""):
    """Waits until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"no {what} after {SECONDS} s\n{log()}"
        time.sleep(0.05)


def _listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ended(process):
    """Asks a process to end, which ends those it has started as well."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
