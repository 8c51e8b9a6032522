"""Long runs: ``make soak``. Kills work at random times; runs rounds and decodes until memory would show a leak.

A federated run, the training of a draft, and consecutive saves are killed. The last line reports how often each was
killed, whether all results are bit-identical to those of uninterrupted work, and by how much memory grew over the
second half of the rounds and of the decoding.
"""

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

import jaxspec
from tests.support.jaxfed import killed_run
from tests.support.jaxspec import models
from tests.support.killing import start
from tests.support.work import KINDS, same

#: Steps of each kind of work, which take about half a minute.
COUNTS = {"simulation": 800, "training": 600, "saving": 1000}


def killed_until_done(kind: str, directory: str, chance: random.Random, most: int) -> int:
    """Restarts the work, killing it at random times, at most ``most`` times; returns how often it was killed."""
    for killed in range(most):
        with start(kind, directory, COUNTS[kind]) as process:
            try:
                errors = process.communicate(timeout=chance.uniform(2.0, 9.0))[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                continue
        if process.returncode:
            raise RuntimeError(errors)
        return killed
    return most


def survives_kills(kind: str, kills: int) -> bool:
    """Whether work killed ``kills`` times ends bit-identical to uninterrupted work; restarted whenever it is done."""
    expected, chance, identical, killed = KINDS[kind](None, COUNTS[kind]), random.Random(kind), True, 0
    with tqdm(total=kills, desc=f"kills of {kind}") as bar:
        while killed < kills:
            with tempfile.TemporaryDirectory() as directory:
                killed += killed_until_done(kind, directory, chance, kills - killed)
                identical &= same(KINDS[kind](directory, COUNTS[kind]), expected)
            bar.update(killed - bar.n)
    return identical


def peak() -> float:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def growth(sizes: list[float]) -> float:
    """Growth of peak memory over the second half, in MiB."""
    return sizes[-1] - sizes[len(sizes) // 2]


def growth_of_rounds(rounds: int) -> float:
    """Growth of peak memory over the second half of a federated run with checkpoints, in MiB."""
    sizes: list[float] = []

    def evaluate(params: object) -> dict[str, float]:
        sizes.append(peak())
        return {}

    options = {"evaluate": evaluate, "every": rounds // 100, "progress": True, "save_every": rounds // 20}
    with tempfile.TemporaryDirectory() as directory:
        killed_run.run(directory, rounds, idle=1000, **options)
    return growth(sizes)


def growth_of_decoding(tokens: int) -> float:
    """Growth of peak memory over the second half of decoding ``tokens`` tokens, in MiB."""
    method, sizes, decoded = models.mirror(3, 2, 2), [], 0
    with tqdm(total=tokens, desc="tokens") as bar:
        while decoded < tokens:
            new = jaxspec.generate(method, models.PROMPTS, 1000).stats.new_tokens
            decoded += new
            bar.update(new)
            sizes.append(peak())
    return growth(sizes)


def main() -> None:
    """Runs all."""
    parser = argparse.ArgumentParser(description="Kills, rounds and decoding at length.")
    parser.add_argument("--kills", type=int, default=12, help="of each kind of work")
    parser.add_argument("--rounds", type=int, default=10_000, help="of the federated run; a multiple of 100")
    parser.add_argument("--tokens", type=int, default=100_000, help="to decode")
    options, began = parser.parse_args(), time.perf_counter()
    grown = growth_of_rounds(options.rounds), growth_of_decoding(options.tokens)
    identical = [survives_kills(kind, options.kills) for kind in KINDS]
    seconds = time.perf_counter() - began
    kills = f"{len(KINDS)} kinds of work killed {options.kills} times each, bit-identical {all(identical)}"
    memory = f"{options.rounds} rounds, memory +{grown[0]:.1f} MiB; {options.tokens} tokens, memory +{grown[1]:.1f} MiB"
    print(f"{kills}; {memory}; {seconds:.0f} s")
    sys.exit(not all(identical))


if __name__ == "__main__":
    main()
