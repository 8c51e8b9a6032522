"""The full product of settings: ``make matrix``. Resumable; the last line counts the identical rows.

Five products are decoded and compared with plain decoding, token by token:

- exits: Mirror-SD of the tiny pair, greedy, every window 1-8 × κ 1-8 × exit layer;
- policies: policies × plain and streaming drafts × windows × κ × exits × batches, at temperature 0 and 1;
- fallbacks: fallbacks × policies × rules of acceptance;
- reading: drafts that read hidden states × chains, trees and policies × targets × batches × sampling;
- families: speculative and Mirror decoding of a pair like each published family, window 1-8 × batch × temperature, with
  filters, penalties and seeds that cycle.

Rows that share programs run one after the other: temperature, filters and seed are traced, so they compile nothing. A
sequence that differs is printed with the gap between its two best tokens at that position; a gap below ``pairs.TIE`` is
a tie, not a difference. Finished rows are kept in ``out/matrix.jsonl`` and not run again until the package changes.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from tests.support import environment  # noqa: F401

# isort: split
import jax
from tqdm import tqdm

import jaxspec
from tests.support.jaxspec import fallback_rows, models, pairs, policies, reading_rows

OUT = Path("out/matrix.jsonl")
FALLBACK_ROWS = list(product(fallback_rows.FALLBACKS, fallback_rows.POLICIES))
EXITS = range(1, models.TARGET.num_layers + 1)
#: Groups of rows; the rows of a group share programs, and so do neighbouring groups in part.
GROUPS = [
    *([("exits", *pair, exit_layer) for exit_layer in EXITS] for pair in product(range(1, 9), range(1, 9))),
    *([("policies", *row, temperature) for temperature in policies.TEMPERATURES] for row in policies.ROWS),
    *([("fallbacks", *row, mode) for mode in fallback_rows.MODES] for row in FALLBACK_ROWS),
    *([("reading", *row, mode) for mode in reading_rows.MODES] for row in product(*reading_rows.AXES[:-1])),
    *(
        [(kind, *setting, temperature) for kind in pairs.METHODS for temperature in pairs.TEMPERATURES]
        for setting in product(pairs.FAMILIES, pairs.BATCHES, pairs.WINDOWS)
    ),
]
_shared: list = []


def code() -> str:
    """A digest of the package and of the settings: results of another one are not counted."""
    files = sorted(Path(jaxspec.__file__).parent.rglob("*.py")) + [
        Path(each.__file__) for each in (models, pairs, policies, fallback_rows, reading_rows)
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def run(group: list[tuple], done: set[tuple]) -> list[dict]:
    """The rows of a group that are not ``done``: whether each gives the tokens of plain decoding."""
    share = group[0][: {"exits": 2, "policies": 4, "reading": 4}.get(group[0][0], 3)]
    if _shared != [share]:
        jax.clear_caches()
        _shared[:] = [share]
    return [{"row": row} | KINDS.get(row[0], families)(*row) for row in group if row not in done]


def exits(_: str, window: int, kappa: int, exit_layer: int) -> dict:
    """Mirror decoding of the tiny pair."""
    tokens = jaxspec.generate(models.mirror(window, kappa, exit_layer), models.PROMPTS, models.NEW_TOKENS).tokens
    return {"identical": tokens == models.expected(), "tokens": sum(map(len, tokens)), "partings": []}


def policy(_: str, *row) -> dict:
    """A policy, with a plain or a streaming draft."""
    tokens = policies.decode(row[:-1], row[-1])
    expected = policies.expected(row[-2], row[-1])
    return {"identical": tokens == expected, "tokens": sum(map(len, tokens)), "partings": []}


def families(*row) -> dict:
    """One method on a pair like a family's; ties do not count as differences."""
    result, partings = pairs.compared(*row)
    identical = all(parting.gap < pairs.TIE for parting in partings)
    return {"identical": identical, "tokens": result.stats.new_tokens, "partings": partings}


def fallback(_: str, *row) -> dict:
    """A fallback with a policy and a rule of acceptance."""
    tokens, expected = fallback_rows.tokens_of(*row)
    return {"identical": tokens == expected, "tokens": models.NEW_TOKENS * 2, "partings": []}


def reading(_: str, *row) -> dict:
    """A draft that reads hidden states."""
    tokens, expected = reading_rows.tokens_of(*row, new_tokens=40)
    return {"identical": tokens == expected, "tokens": sum(map(len, tokens)), "partings": []}


KINDS = {"exits": exits, "policies": policy, "fallbacks": fallback, "reading": reading}


def finished(version: str) -> dict[tuple, dict]:
    """Rows in the file, of this version of the package."""
    lines = OUT.read_text().splitlines() if OUT.exists() else []
    return {tuple(line["row"]): line for line in map(json.loads, lines) if line.get("code") == version}


def results(groups: list[list[tuple]], done: set[tuple]) -> Iterator[dict]:
    """Missing rows of the groups, as they are ready."""
    groups = [group for group in groups if not done.issuperset(group)]
    with ProcessPoolExecutor(int(os.environ.get("WORKERS", 2)), get_context("spawn")) as pool:
        for rows in pool.map(partial(run, done=done), groups):
            yield from rows


def report(line: dict) -> None:
    """Prints what differs in a row."""
    for sequence, position, gap in line["partings"]:
        kind = "tie" if gap < pairs.TIE else "DIFFERENT"
        tqdm.write(f"{line['row']}: sequence {sequence}, token {position}: {kind}, top-2 gap {gap:.2e}")


def main() -> None:
    """Runs what is missing, then counts."""
    parser = argparse.ArgumentParser(description="The full product of decoding settings, compared with plain decoding.")
    parser.add_argument("--groups", type=int, help="only the first so many groups of rows; all by default")
    groups = GROUPS[: parser.parse_args().groups]
    OUT.parent.mkdir(exist_ok=True)
    version, rows = code(), [row for group in groups for row in group]
    done = finished(version)
    with OUT.open("a") as file, tqdm(total=len(rows), initial=len(done.keys() & set(rows)), desc="matrix") as bar:
        for line in results(groups, set(done)):
            done[tuple(line["row"])] = line
            print(json.dumps(line | {"code": version}), file=file, flush=True)
            report(line)
            bar.update()
    ties = sum(parting[2] < pairs.TIE for row in rows for parting in done[row]["partings"])
    identical = sum(done[row]["identical"] for row in rows)
    print(f"{sum(done[row]['tokens'] for row in rows)} tokens, {ties} ties (top-2 gap below {pairs.TIE})")
    print(f"{identical} of {len(rows)} identical", flush=True)
    sys.exit(identical < len(rows))


if __name__ == "__main__":
    main()
