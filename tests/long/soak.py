"""Long runs: ``make soak``. Kills work at random times, then runs rounds and decodes until memory would show a leak.

Killed are a federated run, the training of a draft, and saves one after the other. The last line says how often each
was killed, whether all ended bit-identical to work that was not, and by how much memory grew over the second half of
the rounds and of the decoding.
"""

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

#: Kills of each kind of work; its steps, which take half a minute or so.
KILLS, COUNTS = 12, {"simulation": 800, "training": 600, "saving": 1000}
ROUNDS, TOKENS = 10_000, 100_000


def killed_until_done(kind: str, directory: str, chance: random.Random, most: int) -> int:
    """Starts the work again and again, killing it at random times, ``most`` times at most; how often it was killed."""
    for killed in range(most):
        with start(kind, directory, COUNTS[kind]) as process:
            try:
                told = process.communicate(timeout=chance.uniform(2.0, 9.0))[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                continue
        if process.returncode:
            raise RuntimeError(told)
        return killed
    return most


def survives_kills(kind: str) -> bool:
    """Whether work killed ``KILLS`` times ends as work that was not does, bit for bit; begun anew where it is done."""
    expected, chance, identical, killed = KINDS[kind](None, COUNTS[kind]), random.Random(kind), True, 0
    with tqdm(total=KILLS, desc=f"kills of {kind}") as bar:
        while killed < KILLS:
            with tempfile.TemporaryDirectory() as directory:
                killed += killed_until_done(kind, directory, chance, KILLS - killed)
                identical &= same(KINDS[kind](directory, COUNTS[kind]), expected)
            bar.update(killed - bar.n)
    return identical


def peak() -> float:
    """MiB of memory that this process had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def growth(sizes: list[float]) -> float:
    """MiB by which peak memory grew over the second half."""
    return sizes[-1] - sizes[len(sizes) // 2]


def growth_of_rounds(rounds: int) -> float:
    """MiB by which peak memory grew over the second half of a federated run with checkpoints."""
    sizes: list[float] = []

    def evaluate(params: object) -> dict[str, float]:
        sizes.append(peak())
        return {}

    options = {"evaluate": evaluate, "every": rounds // 100, "progress": True, "save_every": rounds // 20}
    with tempfile.TemporaryDirectory() as directory:
        killed_run.run(directory, rounds, idle=1000, **options)
    return growth(sizes)


def growth_of_decoding(tokens: int) -> float:
    """MiB by which peak memory grew over the second half of decoding ``tokens`` tokens."""
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
    began = time.perf_counter()
    grown = growth_of_rounds(ROUNDS), growth_of_decoding(TOKENS)
    identical = [survives_kills(kind) for kind in KINDS]
    seconds = time.perf_counter() - began
    kills = f"{len(KINDS)} kinds of work killed {KILLS} times each, bit-identical {all(identical)}"
    memory = f"{ROUNDS} rounds, memory +{grown[0]:.1f} MiB; {TOKENS} tokens, memory +{grown[1]:.1f} MiB"
    print(f"{kills}; {memory}; {seconds:.0f} s")
    sys.exit(not all(identical))


if __name__ == "__main__":
    main()
