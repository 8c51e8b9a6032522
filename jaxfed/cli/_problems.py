"""The tasks that algorithms are compared on: the embedded text, or images from files, partitioned among clients."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfed import data as datasets
from jaxfed.cli._partition import RULES, PartitionRule, arguments, read_splits
from jaxfed.cli._shakespeare import LearningTask, next_character
from jaxfed.core.checks import check_choice
from jaxfed.core.types import Params
from jaxfed.models import MLP, cross_entropy, functional
from jaxfed.run.metrics import PerClient, classification, per_client, summary

HIDDEN = (200, 200)


@dataclasses.dataclass(frozen=True)
class Source:
    """The data that clients train on.

    Attributes:
        data: folder of MNIST or Fashion-MNIST (idx files) or of CIFAR, or an npz file with x_train, y_train, x_test
            and y_test, for an MLP with two hidden layers of 200; by default the next character of Shakespeare's roles.
        partition: how images are partitioned: dirichlet (default), iid, pathological or quantity.
        concentration: of dirichlet (0.3 by default) and quantity (1.0): the smaller, the more unequal.
        classes_per_client: of pathological; 2 by default.
    """

    data: Path | None = None
    partition: str | None = None
    concentration: float | None = None
    classes_per_client: int | None = None


def tasks(source: Source, clients: int) -> Callable[[int], LearningTask]:
    """Return `task(seed)`: the same samples; the partition and the first parameters depend on the seed.

    Raises:
        ValueError: no such data, an unknown rule (nearest name suggested), or options that the rule does not have.
    """
    if source.data is None:
        if options := [name for name, each in dataclasses.asdict(source).items() if each is not None]:
            raise ValueError(f"the roles are the clients by nature, got {', '.join(options)}; name images with --data")
        return lambda seed: next_character(clients, seed)
    name = source.partition or "dirichlet"
    check_choice("partition", name, RULES)
    splits = read_splits(source.data)
    rule = PartitionRule(name, clients, source.concentration, source.classes_per_client)
    arguments(name, rule, splits["train"]["y"])
    return lambda seed: images(splits, dataclasses.replace(rule, seed=seed))


def images(splits: dict[str, dict[str, np.ndarray]], rule: PartitionRule) -> LearningTask:
    """Return the task of an MLP on images; "unseen" is the test set, weighted by a client's own shares of classes.

    The accuracy of client i is Σ_c pᵢ(c)·(accuracy on class c), pᵢ(c) the share of class c of its training samples.
    """
    train, test = splits["train"], splits["test"]
    name = rule.rule or "dirichlet"
    parts = RULES[name](**arguments(name, rule, train["y"]))
    statistics = datasets.channel_statistics(train["x"])
    levels = train["x"].dtype == np.uint8  # stay bytes on the device; floats are normalised before they go there
    if not levels:
        train, test = ({**each, "x": datasets.normalised(each["x"], *statistics)} for each in (train, test))
    classes, by_class = datasets.natural(test["y"])
    network = MLP((int(np.prod(train["x"].shape[1:])), *HIDDEN, len(classes)), rngs=nnx.Rngs(rule.seed))
    params, logits = functional(network)

    def apply(params: Params, x: Array) -> Array:
        return logits(params, datasets.normalised(x, *statistics) if levels else x)

    counts = np.stack([(train["y"][part][:, None] == classes).sum(axis=0) for part in parts])
    shares = jnp.asarray(counts / counts.sum(axis=1, keepdims=True), jnp.float32)
    measure = per_client(classification(apply), datasets.partitioned(test, by_class), batch_size=2000)

    @jax.jit
    def summarise(measured: PerClient) -> dict[str, Array]:
        own = {name: shares @ each for name, each in measured.means.items()}
        pooled = summary(measured)
        averaged = summary(PerClient(own, jnp.ones(len(shares), jnp.int32), jnp.arange(len(shares))))
        return averaged | {name: pooled[name] for name in own}

    def evaluate(params: Params) -> dict[str, float]:
        return {f"unseen_{name}": float(number) for name, number in summarise(measure(params)).items()}

    return LearningTask(datasets.partitioned(train, parts), params, cross_entropy(apply), evaluate)
