"""The full product of settings: ``make matrix``. Resumable; the last line says how many of them are identical.

Every window 1-8 × κ 1-8 × exit layer decodes a batch of unequal prompts with tiny random models and is compared,
token by token, with plain decoding. Finished rows stand in ``out/matrix.jsonl`` and are not run again.
"""

import json
from itertools import product
from pathlib import Path

from tqdm import tqdm

import jaxspec
from tests.jaxspec import models

OUT = Path("out/matrix.jsonl")
ROWS = list(product(range(1, 9), range(1, 9), range(1, models.TARGET.num_layers + 1)))


def identical(window: int, kappa: int, exit_layer: int) -> bool:
    """Whether one setting gives the tokens of plain decoding."""
    method = models.mirror(window, kappa, exit_layer)
    return jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()


def main() -> None:
    """Runs what is missing, then counts."""
    OUT.parent.mkdir(exist_ok=True)
    lines = OUT.read_text().splitlines() if OUT.exists() else []
    done = {tuple(row["row"]): row["identical"] for row in map(json.loads, lines)}
    with OUT.open("a") as file:
        for row in tqdm([row for row in ROWS if row not in done], "matrix"):
            done[row] = identical(*row)
            print(json.dumps({"row": row, "identical": done[row]}), file=file, flush=True)
    print(f"{sum(done[row] for row in ROWS)} of {len(ROWS)} identical")


if __name__ == "__main__":
    main()
