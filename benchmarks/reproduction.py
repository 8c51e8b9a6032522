"""Published experiments at small scale: the data, one program per algorithm, and comparisons of accuracy curves."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import jaxfed
from jaxfed import models
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import Plan
from jaxfed.core.types import LossFn, Params
from jaxfed.data import (
    Steps,
    augmented,
    channel_statistics,
    cifar,
    dirichlet,
    flip,
    iid,
    in_turn,
    mnist,
    normalised,
    pad_crop,
    partitioned,
)
from jaxfed.layout.sharding import Shardings
from jaxfed.rows.device import block
from jaxfed.rows.rounds import RoundConfig, World

CLIENTS, COHORT, BATCH, EPOCHS = 100, 10, 50, 5
SHARED = {
    "client_learning_rate": 0.1,
    "learning_rate_decay": 0.998,
    "weight_decay": 1e-3,
    "clip_norm": 10.0,
    "variant": "reference",
}
OWN: Mapping[str, Mapping[str, float]] = {
    "fedavg": {},
    "fedspeed": {"prox_weight": 0.1, "ascent_radius": 0.1},
    "fedprox": {"prox_weight": 0.1},
    "fedadam": {"server_learning_rate": 0.1},
    "scaffold": {},
    "feddyn": {"prox_weight": 0.1},
    "fedcm": {"momentum_weight": 0.1},
    "fedsam": {"ascent_radius": 0.1},
    "mofedsam": {"ascent_radius": 0.1, "momentum_weight": 0.1},
    "fedgamma": {"ascent_radius": 0.01},
    "fedsmoo": {"prox_weight": 0.1, "ascent_radius": 0.1},
}
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "iid": {
        "fedavg": 82.52, "fedadam": 84.32, "scaffold": 84.88, "feddyn": 85.46, "fedcm": 85.74, "mofedsam": 87.24,
        "fedspeed": 87.31, "fedsmoo": 87.70,
    },
    "0.6": {
        "fedavg": 80.65, "fedadam": 82.56, "scaffold": 83.53, "feddyn": 84.22, "fedcm": 83.81, "mofedsam": 85.74,
        "fedspeed": 86.33, "fedsmoo": 86.87,
    },
    "0.3": {
        "fedavg": 79.75, "fedadam": 82.12, "scaffold": 82.75, "feddyn": 83.22, "fedcm": 83.44, "mofedsam": 85.14,
        "fedspeed": 85.39, "fedsmoo": 86.04,
    },
    "0.1": {
        "fedavg": 77.31, "fedadam": 77.58, "scaffold": 79.92, "feddyn": 78.96, "fedcm": 78.92, "mofedsam": 81.58,
        "fedspeed": 82.26, "fedsmoo": 83.30,
    },
}  # fmt: skip
"""Per cent, best of 1000 rounds: the authors' table for ResNet-18-GN on CIFAR-10, 10 % of 100 clients, 5 epochs."""

Row = dict[str, Any]
Evaluate = Callable[[Params], Mapping[str, jax.Array]]


class ImageProblem(NamedTuple):
    """Network and data of all clients.

    Attributes:
        build: `build(seed)` -> a network.
        apply: logits.
        evaluate: accuracy on the test set.
        worlds: the clients' data by (partition, seed); all have the same samples in total.
        samples_per_client: samples of a client of mean size.
        augment: of training images.
    """

    build: Callable[[int], nnx.Module]
    apply: models.ApplyFn
    evaluate: Evaluate
    worlds: Mapping[tuple[str, int], World]
    samples_per_client: int
    augment: Callable[..., jax.Array] | None = None

    def loss_fn(self, bfloat16: bool = False) -> LossFn:
        """Cross-entropy of augmented images, in float32, or computed in bfloat16 over parameters in float32."""
        loss_fn = models.cross_entropy(self.apply)
        loss_fn = loss_fn if self.augment is None else augmented(loss_fn, self.augment)
        return jaxfed.mixed_precision(loss_fn) if bfloat16 else loss_fn

    def local_steps(self, epochs: int) -> int:
        """Local steps of these epochs of a client of mean size; the same for all clients."""
        return max(1, round(epochs * self.samples_per_client / BATCH))

    @property
    def longest(self) -> int:
        """Samples of the largest client of all partitions; with it, one program serves all partitions."""
        return max(int(np.max(world.data.lengths)) for world in self.worlds.values())


def mlp(seed: int) -> nnx.Module:
    """784-200-200-10 with relu."""
    return models.MLP((784, 200, 200, 10), activation=jax.nn.relu, rngs=nnx.Rngs(seed))


def lenet(seed: int) -> nnx.Module:
    """Two 5×5 convolutions and three dense layers."""
    return models.LeNet(rngs=nnx.Rngs(seed))


def resnet(seed: int, channels: int = 1) -> nnx.Module:
    """ResNet-18 with group normalisation and the ImageNet stem."""
    return models.ResNet18(channels=channels, rngs=nnx.Rngs(seed))


class Suite(NamedTuple):
    """A network and its data.

    Attributes:
        build: `build(seed)` -> the network.
        read: folder -> {"train", "test"}.
        seeds: repetitions unless asked for.
        images: training images of the whole set.
        published: whether its defaults are the published setting: all images, Dirichlet 0.6, 1,000 rounds.
        augment: of training images.
    """

    build: Callable[[int], nnx.Module]
    read: Callable[[Path], Mapping[str, Mapping[str, np.ndarray]]] = mnist
    seeds: int = 1
    images: int = 60_000
    published: bool = False
    augment: Callable[..., jax.Array] | None = None


SUITES = {
    "mlp": Suite(mlp, seeds=3),
    "lenet": Suite(lenet),
    "resnet": Suite(resnet, published=True),
    "cifar": Suite(functools.partial(resnet, channels=3), cifar, 1, 50_000, True, in_turn(flip, pad_crop)),
}


def problem(
    folder: Path, suite: str, partitions: Sequence[str], seeds: int, samples_per_client: int, recycle: bool
) -> ImageProblem:
    """Read the images, take a seeded subset of the training set, and partition it for every partition and seed.

    Raises:
        ValueError: there are fewer samples.
    """
    chosen_suite = SUITES[suite]
    splits, size = chosen_suite.read(folder), CLIENTS * samples_per_client
    total = len(splits["train"]["y"])
    check_range("samples_per_client", samples_per_client, least=1, most=total // CLIENTS)
    chosen = np.random.default_rng(0).permutation(total)[:size]
    subset = {name: array[chosen] for name, array in splits["train"].items()}
    statistics = channel_statistics(subset["x"])
    train, test = (
        jax.device_put({"x": normalised(part["x"], *statistics), "y": part["y"]}) for part in (subset, splits["test"])
    )
    worlds = {
        (name, seed): World(partitioned(train, parts_of(name, subset["y"], seed, recycle)))
        for name in partitions
        for seed in range(seeds)
    }
    build = chosen_suite.build
    _, apply = models.functional(build(0))
    evaluate = models.evaluator(apply, test)
    return ImageProblem(build, apply, evaluate, worlds, samples_per_client, chosen_suite.augment)


def parts_of(partition: str, labels: np.ndarray, seed: int, recycle: bool) -> list[np.ndarray]:
    """Return each client's sample indices; `partition` is "iid" or the concentration of a Dirichlet distribution."""
    if partition == "iid":
        return iid(labels, CLIENTS, seed, recycle)
    return dirichlet(labels, CLIENTS, float(partition), seed, recycle)


class Program(NamedTuple):
    """Rounds of one algorithm as one compiled call; partition, seed and number of rounds are arguments.

    Attributes:
        algorithm: init and step.
        play: `play(server, population, world, ids [most, C], count, seed)`, from `jaxfed.rows.device.block`.
        most: largest number of rounds per call, and the rounds between two evaluations.
    """

    algorithm: jaxfed.FederatedAlgorithm
    play: Callable[..., tuple]
    most: int


def program(task: ImageProblem, name: str, epochs: int, most: int, plan: Plan, bfloat16: bool = False) -> Program:
    """Compile the rounds of `jaxfed.simulate` with a traced seed; `simulate` itself would compile for every run."""
    algorithm = jaxfed.algorithms.get(name)(task.loss_fn(bfloat16), **SHARED, **OWN[name])
    batching, longest = Steps(task.local_steps(epochs), BATCH), task.longest

    @functools.partial(jax.jit, donate_argnums=1)
    def play(server: Any, population: Any, world: World, ids: Any, count: Any, seed: Any) -> tuple:
        config = RoundConfig(algorithm, batching, plan, longest, seed)
        return block(config, jaxfed.DeviceStore(), Shardings.of(None))(server, population, world, ids, count)

    return Program(algorithm, play, most)


class Run:
    """One run of a program, a few rounds at a time.

    Attributes:
        server: after the last round.
        facts: accuracies so far, seconds of training, and clients that were excluded (NaN) before each evaluation.
    """

    def __init__(self, task: ImageProblem, chosen: Program, partition: str, seed: int) -> None:
        params, _ = models.functional(task.build(seed))
        self._task, self._program, self._world, self._seed = task, chosen, task.worlds[partition, seed], seed
        self.server = chosen.algorithm.init(params, CLIENTS)
        row = chosen.algorithm.init_client(self.server.params, self.server.model_state)
        self._population = jaxfed.DeviceStore().init(row, CLIENTS)
        self.facts: Row = {"curve": [], "seconds": 0.0, "excluded": []}

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the facts."""
        return {"server": self.server, "population": self._population}

    def restore(self, state: dict[str, Any], facts: Row) -> None:
        """Go on from a checkpoint."""
        self.server, self._population, self.facts = state["server"], state["population"], dict(facts)

    def advance(self, count: int) -> float:
        """Run `count` rounds and return the seconds; with 0 the program is only compiled."""
        first, sampler = int(self.server.round), jaxfed.FixedSize(COHORT)
        ids = np.stack([sampler.draw(self._seed, first + n, CLIENTS) for n in range(self._program.most)])
        began = time.perf_counter()
        self.server, self._population, infos = jax.block_until_ready(
            self._program.play(self.server, self._population, self._world, ids, np.int32(count), np.int32(self._seed))
        )
        seconds, self._excluded = time.perf_counter() - began, int(np.sum(infos.excluded))
        return seconds

    def advance_to(self, rounds: int) -> None:
        """Run until after this round, and evaluate."""
        self.facts["seconds"] += self.advance(rounds - int(self.server.round))
        self.facts["excluded"].append(self._excluded)
        self.facts["curve"].append(float(self._task.evaluate(self.server.params)["accuracy"]))


def round_seconds(task: ImageProblem, chosen: Program, partition: str) -> tuple[float, float]:
    """Return seconds of compilation and seconds per round, the latter over about one second."""
    run = Run(task, chosen, partition, 0)
    compiling, once = run.advance(0), run.advance(1)
    count = max(1, min(chosen.most, int(1 / once)))
    return compiling, run.advance(count) / count


def mean_curve(row: Row) -> np.ndarray:
    """Mean over seeds, [n]."""
    return np.mean(row["curves"], axis=0)


def of_same_seeds(*rows: Row) -> list[Row]:
    """Return rows with the first seeds alone, as many as all of them have."""
    seeds = min(len(row["curves"]) for row in rows)
    return [{**row, "curves": row["curves"][:seeds]} for row in rows]


def rounds_to(row: Row, target: float | None) -> int | None:
    """First evaluated round at which the mean over seeds reaches the target accuracy; None if there is none."""
    reached = [] if target is None else np.flatnonzero(mean_curve(row) >= target)
    return row["evaluated"][reached[0]] if len(reached) else None


def summary(row: Row, fedavg: Row | None) -> Row:
    """Best and last accuracy over seeds, in per cent; rounds to FedAvg's best mean accuracy on this partition."""
    curves = 100 * np.asarray(row["curves"])
    best, last = curves.max(axis=1), curves[:, -1]
    same, target = row, None
    if fedavg is not None:
        same, fedavg = of_same_seeds(row, fedavg)
        target = float(mean_curve(fedavg).max())
    return {
        "best": round(float(best.mean()), 2),
        "best_std": round(float(best.std()), 2),
        "last": round(float(last.mean()), 2),
        "last_std": round(float(last.std()), 2),
        "target": None if target is None else round(100 * target, 2),
        "rounds_to_target": rounds_to(same, target),
        "seconds": round(row["seconds"], 2),
        "excluded": row["excluded"],
    }


def margin(row: Row, fedavg: Row) -> Row:
    """FedSpeed's best and last accuracy minus FedAvg's, in points: mean and deviation over the seeds of both."""
    ours, theirs = (100 * np.asarray(each["curves"]) for each in of_same_seeds(row, fedavg))
    best, last = ours.max(axis=1) - theirs.max(axis=1), ours[:, -1] - theirs[:, -1]
    statistics = {"best": best.mean(), "best_std": best.std(), "last": last.mean(), "last_std": last.std()}
    return {name: round(float(number), 2) for name, number in statistics.items()}


def orderings(grid: Mapping[tuple[str, str], Row], by_epochs: Mapping[str, Mapping[tuple[str, int], Row]]) -> Row:
    """Check the published orderings.

    Args:
        grid: rows by (algorithm, partition), the least heterogeneous partition first.
        by_epochs: "samples" or "rounds", what is equal -> rows by (algorithm, local epochs).
    """
    partitions = [name for name in dict.fromkeys(name for _, name in grid) if ("fedspeed", name) in grid]
    partitions = [name for name in partitions if ("fedavg", name) in grid]
    compared = {name: against_fedavg(grid["fedspeed", name], grid["fedavg", name]) for name in partitions}
    published = [round(PUBLISHED[name]["fedspeed"] - PUBLISHED[name]["fedavg"], 2) for name in partitions
                 if name in PUBLISHED]  # fmt: skip
    return {
        "fedspeed_above_fedavg": compared,
        "margin_with_heterogeneity": {**growth([each["margin"] for each in compared.values()]), "published": published},
        "margin_with_local_epochs": over_epochs(by_epochs.get("samples", {})),
        **({"margin_at_equal_rounds": over_epochs(by_epochs["rounds"])} if "rounds" in by_epochs else {}),
        "rank_correlation_with_published": {name: agreement(grid, name) for name in partitions if name in PUBLISHED},
    }


def over_epochs(rows: Mapping[tuple[str, int], Row]) -> Row:
    """Return FedSpeed's margin by local epochs, and whether it grows."""
    ladder = sorted(epochs for algorithm, epochs in rows if algorithm == "fedspeed" and ("fedavg", epochs) in rows)
    margins = {str(epochs): margin(rows["fedspeed", epochs], rows["fedavg", epochs]) for epochs in ladder}
    return {**growth(list(margins.values())), "margins": margins}


def against_fedavg(row: Row, fedavg: Row) -> Row:
    """Compare FedSpeed with FedAvg: accuracy at equal rounds, and rounds to FedAvg's best mean accuracy."""
    row, fedavg = of_same_seeds(row, fedavg)
    difference, target = margin(row, fedavg), float(mean_curve(fedavg).max())
    ours, theirs = rounds_to(row, target), rounds_to(fedavg, target)
    return {
        "margin": difference,
        "accuracy_holds": difference["best"] > 0,
        "rounds": ours,
        "fedavg_rounds": theirs,
        "rounds_hold": ours is not None and theirs is not None and ours < theirs,
    }


def growth(margins: Sequence[Row]) -> Row:
    """Whether the margin of best accuracies grows from first to last, and at every step; None for one margin."""
    best = [each["best"] for each in margins]
    if len(best) < 2:
        return {"best": best, "holds": None, "at_every_step": None}
    pairs = zip(best[:-1], best[1:], strict=True)
    return {"best": best, "holds": best[-1] > best[0], "at_every_step": all(a < b for a, b in pairs)}


def agreement(grid: Mapping[tuple[str, str], Row], partition: str) -> float | None:
    """Spearman's rank correlation of our mean best accuracies with the published ones; None for fewer than three."""
    both = [name for name in PUBLISHED[partition] if (name, partition) in grid]
    if len(both) < 3:
        return None
    rows = of_same_seeds(*(grid[name, partition] for name in both))
    ours = [np.mean(np.max(row["curves"], axis=1)) for row in rows]
    if len(set(ours)) < 2:
        return None
    return round(float(spearmanr(ours, [PUBLISHED[partition][name] for name in both]).statistic), 3)
