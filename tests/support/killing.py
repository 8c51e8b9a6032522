"""Starts work in a process of its own and kills it with SIGKILL at a random moment."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from jaxfed import checkpoint


def start(kind, directory, count):
    """The process that does this work, its output hidden."""
    command = [sys.executable, "-m", "tests.support.work", kind, str(directory), str(count)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_once(kind, directory, count, chance: random.Random, most: float = 0.2):
    """Kills the work up to ``most`` seconds after its first new step is complete; False if it had ended before."""
    process, before = start(kind, directory, count), checkpoint.latest(directory)
    with process:
        while process.poll() is None and checkpoint.latest(directory) == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, most))
        process.send_signal(signal.SIGKILL)
        errors = process.stderr.read()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == -signal.SIGKILL


def half_written(directory):
    """Steps that were started and not completed."""
    return [path.name for path in Path(directory).glob("????????") if not (path / "manifest.json").exists()]
