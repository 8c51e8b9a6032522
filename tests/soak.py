"""Long runs: ``make soak``. Kills a federated run at random times, then decodes until memory would show a leak.

The last line says how often the run was killed, whether it ended bit-identical to one that was not, and by how much
memory grew over the second half of the decoding.
"""

import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from tqdm import tqdm

import jaxspec
from tests.jaxfed.killed_run import run
from tests.jaxspec import models

ROUNDS, KILLS, TOKENS = 1500, 30, 100_000


def killed_until_done(directory: str, rounds: int, kills: int, seed: int = 0) -> int:
    """Starts the run again and again, killing it at random times, ``kills`` times at most; how often it was killed."""
    generator, killed = random.Random(seed), 0
    bar = tqdm(total=kills, desc="kills")
    while True:
        process = subprocess.Popen([sys.executable, "-m", "tests.jaxfed.killed_run", directory, str(rounds)])
        try:
            process.wait(timeout=generator.uniform(4.0, 12.0) if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            bar.update()
            continue
        return killed


def survives_kills() -> tuple[int, bool]:
    """How often a run was killed, and whether it ended as the uninterrupted one does, bit for bit."""
    whole, _ = run(None, ROUNDS)
    with tempfile.TemporaryDirectory() as directory:
        killed = killed_until_done(directory, ROUNDS, KILLS)
        resumed, _ = run(directory, ROUNDS)
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), whole, resumed)
    return killed, jax.tree.all(same)


def memory_growth(tokens: int) -> float:
    """MiB by which peak memory grew over the second half of decoding ``tokens`` tokens."""
    method, sizes, decoded = models.mirror(3, 2, 2), [], 0
    with tqdm(total=tokens, desc="tokens") as bar:
        while decoded < tokens:
            new = jaxspec.generate(method, models.PROMPTS, 1000).stats.new_tokens
            decoded += new
            bar.update(new)
            sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    return sizes[-1] - sizes[len(sizes) // 2]


def main() -> None:
    """Runs both."""
    start = time.perf_counter()
    killed, same = survives_kills()
    growth = memory_growth(TOKENS)
    seconds = time.perf_counter() - start
    print(f"killed {killed} times, bit-identical {same}; {TOKENS} tokens, memory +{growth:.1f} MiB; {seconds:.0f} s")
    sys.exit(not same)


if __name__ == "__main__":
    main()
