"""Growth of a round's time and memory with cohort, population and model: slopes of log-log fits, and a picture.

    python benchmarks/scaling.py [--json] [--picture docs/images/scaling.png] [--most-population 1000000] ...

FedSpeed with `jaxfed.simulate`, one process per point, so that peak memory is measured per point. Each line is a point:
``axis``, ``value``, ``seconds`` per round (the median time between rounds, without the first two), ``peak_mb`` of
resident memory above that before the run, ``disk_mb`` of client rows. The last line of an axis has its slopes: 1 is
proportional, 0 is constant.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

FEATURES, SAMPLES, BATCH, LOCAL_STEPS, ROUNDS = 64, 20, 10, 5, 10
AXES = {"cohort": "clients per round", "population": "registered clients", "model": "parameters"}


@dataclass(frozen=True)
class Options:
    """The largest point of every axis; ``picture``: file of the plot."""

    most_cohort: int = 1000
    most_population: int = 1_000_000
    most_model: int = 10_000_000
    picture: Path | None = None
    json: bool = False


class Point(NamedTuple):
    """One run: its axis and its three sizes."""

    axis: str
    cohort: int = 10
    population: int = 1000
    model: int = 10_000

    @property
    def value(self) -> int:
        """Its value on the axis."""
        return int(getattr(self, self.axis))


def points(options: Options) -> list[Point]:
    """Return the points: half decades for the cohort, decades for the others."""
    cohorts = [size for size in (10, 30, 100, 300, 1000) if size <= options.most_cohort]
    populations = [size for size in (10**n for n in range(2, 7)) if size <= options.most_population]
    models = [size for size in (10**n for n in range(4, 8)) if size <= options.most_model]
    return [
        *(Point("cohort", cohort=size) for size in cohorts),
        *(Point("population", population=size, model=100_000) for size in populations),
        *(Point("model", population=100, model=size) for size in models),
    ]


def measured(point: Point) -> dict[str, Any]:
    """Run a point in its own process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_point, point).result()


def run_point(point: Point) -> dict[str, Any]:
    """Train a two-layer network of about `model` parameters; clients share one block of samples, rows are on disk."""
    import jax
    import jax.numpy as jnp

    import jaxfed

    draw = np.random.default_rng(0)
    width = max(1, round(point.model / (FEATURES + 11)))
    shapes = {"first": (FEATURES, width), "second": (width, 10)}
    params = {name: jnp.asarray(draw.standard_normal(shape, np.float32) * 0.1) for name, shape in shapes.items()}
    loss_fn = jaxfed.models.cross_entropy(lambda p, x: jax.nn.relu(x @ p["first"]) @ p["second"])
    algorithm = jaxfed.fedspeed(loss_fn, client_learning_rate=0.01)
    data = shared_data(point.population, draw)
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        before = _resident_mb()
        jaxfed.simulate(
            algorithm, algorithm.init(params, point.population), data, rounds=ROUNDS,
            batching=jaxfed.Steps(LOCAL_STEPS, BATCH), sampler=jaxfed.FixedSize(point.cohort),
            layout=jaxfed.Layout(jaxfed.map(), store=jaxfed.DiskStore(directory)),
            report=jaxfed.Report(callbacks=[lambda *_: stamps.append(time.perf_counter())], progress=False),
        )  # fmt: skip
        disk = sum(file.stat().st_blocks * 512 for file in Path(directory).rglob("*") if file.is_file())
    costs = {"seconds": float(np.median(np.diff(stamps)[1:])), "peak_mb": _resident_mb() - before}
    sizes = {**point._asdict(), "model": sum(int(np.prod(shape)) for shape in shapes.values())}
    return {"axis": point.axis, "value": point.value, **costs, "disk_mb": disk / 1e6, **sizes}


def shared_data(population: int, draw: np.random.Generator) -> Any:
    """Return clients of 20 samples each, all from one block of 100,000 samples; a client costs eight bytes."""
    import jax.numpy as jnp

    import jaxfed

    block = min(100_000, population * SAMPLES)
    arrays = {
        "x": jnp.asarray(draw.standard_normal((block, FEATURES), np.float32)),
        "y": jnp.asarray(draw.integers(0, 10, block, np.int32)),
    }
    offsets = draw.integers(0, block - SAMPLES + 1, population, np.int32)
    return jaxfed.data.ClientData(arrays, jnp.asarray(offsets), jnp.full(population, SAMPLES, jnp.int32))


def _resident_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def slopes(axis: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit exponents of time and memory over an axis, and over its upper half, where constant costs matter least."""
    fit: dict[str, Any] = {"axis": axis}
    for name in ("seconds", "peak_mb"):
        x, y = np.log([row["value"] for row in rows]), np.log([max(row[name], 1e-9) for row in rows])
        fit[f"{name}_slope"] = float(np.polyfit(x, y, 1)[0])
        half = len(rows) // 2
        fit[f"{name}_slope_upper"] = float(np.polyfit(x[half:], y[half:], 1)[0]) if len(rows) - half > 1 else None
    return fit


def draw_picture(rows: list[dict[str, Any]], fits: list[dict[str, Any]], path: Path) -> None:
    """Draw two rows of panels: seconds per round and peak memory, over each axis."""
    import matplotlib.pyplot as plt

    size = (3.4 * len(fits), 5.6)
    figure, panels = plt.subplots(2, len(fits), figsize=size, squeeze=False, sharey="row", layout="constrained")
    for column, fit in enumerate(fits):
        here = [row for row in rows if row["axis"] == fit["axis"]]
        for panel, name in zip(panels[:, column], ("seconds", "peak_mb"), strict=True):
            panel.loglog([row["value"] for row in here], [row[name] for row in here], "o-")
            panel.set_title(f"slope {fit[f'{name}_slope']:.2f}, upper half {fit[f'{name}_slope_upper']:.2f}")
            panel.set_xlabel(AXES[fit["axis"]])
            panel.grid(alpha=0.3)
        panels[0, column].set_ylabel("seconds per round")
        panels[1, column].set_ylabel("memory of the run, MB")
    figure.savefig(path, dpi=110)


def table(rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> Table:
    """Return a table of the lines."""
    shown = Table("axis", "value", "ms per round", "memory, MB", "rows on disk, MB", "slopes: time, memory")
    for row in rows:
        numbers = f"{1e3 * row['seconds']:.1f}", f"{row['peak_mb']:.0f}", f"{row['disk_mb']:.1f}"
        shown.add_row(row["axis"], f"{row['value']:,}", *numbers, "")
    for fit in fits:
        shown.add_row(fit["axis"], "", "", "", "", f"{fit['seconds_slope']:.2f}, {fit['peak_mb_slope']:.2f}")
    return shown


def main(options: Options) -> None:
    """Measure every point, print lines and slopes, draw the picture."""
    rows = []
    for point in tqdm(points(options), disable=options.json):
        rows.append(measured(point))
        if options.json:
            print(json.dumps(rows[-1]), flush=True)
    fits = [slopes(axis, [row for row in rows if row["axis"] == axis]) for axis in AXES]
    if options.json:
        for fit in fits:
            print(json.dumps(fit))
    else:
        Console(width=120).print(table(rows, fits))
    if options.picture:
        draw_picture(rows, fits, options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
