"""``jaxfed partition``: partition a dataset among clients, and show how unequal they are."""

import dataclasses
import inspect
import json as jsons
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich
import tyro
from rich.table import Table

from jaxfed import data as datasets
from jaxfed import plot as pictures
from jaxfed.cli._options import Flag
from jaxfed.core.checks import check_choice, check_range

RULES: Mapping[str, Callable[..., list[np.ndarray]]] = {
    "iid": datasets.iid,
    "dirichlet": datasets.dirichlet,
    "pathological": datasets.pathological,
    "quantity": datasets.quantity_skew,
}


@dataclasses.dataclass(frozen=True)
class PartitionRule:
    """How samples are partitioned; None leaves an option at the rule's default.

    Attributes:
        rule: iid, dirichlet, pathological, quantity, or natural (the roles are the clients); by default natural
            without --data, else dirichlet.
        clients: number of clients; by default 100, or all natural ones.
        concentration: of dirichlet (0.3 by default) and quantity (1.0): the smaller, the more unequal.
        classes_per_client: of pathological; 2 by default.
        min_samples: fewest samples of a client, of dirichlet and quantity.
        recycle: the rule of the FedSpeed authors' code: equal client sizes, samples may repeat across clients.
        seed: of the generator.
    """

    rule: str | None = None
    clients: int | None = None
    concentration: float | None = None
    classes_per_client: int | None = None
    min_samples: int | None = None
    recycle: Flag = False
    seed: int = 0


DEFAULTS: Mapping[str, dict[str, float]] = {
    "dirichlet": {"concentration": 0.3},
    "quantity": {"concentration": 1.0},
    "pathological": {"classes_per_client": 2},
}


class Labels(NamedTuple):
    """The class of every sample [n], the names of the classes, and a natural partition if there is one."""

    labels: np.ndarray
    classes: list[str]
    clients: list[np.ndarray] | None


def partition(
    data: Path | None = None,
    rule: Annotated[PartitionRule, tyro.conf.arg(name="")] = PartitionRule(),
    plot: Path | None = None,
    out: Path | None = None,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Partition a dataset among clients, and show how unequal they are.

    Args:
        data: folder of MNIST or Fashion-MNIST (idx files) or of CIFAR (python or binary files), or an npz file with
            x_train and y_train; by default the embedded Shakespeare roles, each character a sample.
        rule: the rule and its options.
        plot: picture to draw of the clients' classes.
        out: npz file for the partition, read by jaxfed.data.load_parts.
        json: end with one JSON object on one line.
    """
    name = rule.rule or ("natural" if data is None else "dirichlet")
    check_choice("rule", name, [*RULES, "natural"])
    source = _roles() if data is None else _images(data)
    parts = _natural(source, rule) if name == "natural" else RULES[name](**arguments(name, rule, source.labels))
    counts = datasets.label_counts(source.labels, parts)
    skew = datasets.skew_of(source.labels, counts)
    rich.print(_table(f"{name}, {len(source.labels):,} samples of {len(source.classes)} classes", skew))
    if plot:
        pictures.label_distribution(counts, plot, source.classes)
    if out:
        datasets.save_parts(out, parts)
    for path in filter(None, (plot, out)):
        print(f"written: {path}")
    if json:
        facts = {"rule": name, "samples": len(source.labels), "classes": len(source.classes), "seed": rule.seed}
        print(jsons.dumps(facts | skew._asdict()))


def arguments(name: str, rule: PartitionRule, labels: np.ndarray) -> dict[str, Any]:
    """Return the partitioner's arguments: the options that are set, and defaults.

    Raises:
        ValueError: an option which the rule does not have.
    """
    chosen, parameters = options(rule), inspect.signature(RULES[name]).parameters
    if strange := sorted(chosen.keys() - parameters.keys()):
        raise ValueError(f"expected options of the rule {name}, got {', '.join(strange)}; leave it out")
    first = next(iter(parameters))
    clients = 100 if rule.clients is None else rule.clients
    return {first: labels, "num_clients": clients, "seed": rule.seed, **DEFAULTS.get(name, {}), **chosen}


def options(rule: PartitionRule) -> dict[str, Any]:
    """Return the options that are set, without those that every rule has."""
    chosen = {
        name: value for name, value in dataclasses.asdict(rule).items() if value is not None and value is not False
    }
    return {name: chosen[name] for name in sorted(chosen.keys() - {"rule", "clients", "seed"})}


def _natural(source: Labels, rule: PartitionRule) -> list[np.ndarray]:
    if source.clients is None:
        raise ValueError(f"expected one of {', '.join(RULES)}: images have no clients by nature; choose another --rule")
    if chosen := options(rule):
        raise ValueError(f"expected no option of the rule natural but --clients, got {', '.join(chosen)}; leave it out")
    count = len(source.clients) if rule.clients is None else rule.clients
    check_range("clients", count, least=1, most=len(source.clients))
    return source.clients[:count]


def _roles() -> Labels:
    """Return every character of every role, in the order of roles."""
    roles = datasets.read_roles(min_chars=1)
    points = np.frombuffer("".join(role.text for role in roles).encode("utf-32-le"), np.uint32)
    owners = np.repeat(np.arange(len(roles)), [len(role.text) for role in roles])
    names = ["space" if point == 32 else repr(chr(point))[1:-1] for point in np.unique(points)]
    return Labels(points, names, datasets.natural(owners)[1])


def read_splits(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read {"train": {"x", "y"}, "test": ...} of any dataset that the command line takes.

    Raises:
        ValueError: no such path, or files that are missing or damaged.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such folder or file; expected idx files, CIFAR's files or an npz file")
    try:
        if path.suffix == ".npz":
            return datasets.splits_of_npz(path)
        return datasets.mnist(path) if path.is_dir() and any(path.glob("*-ubyte*")) else datasets.cifar(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _images(path: Path) -> Labels:
    labels = read_splits(path)["train"]["y"]
    return Labels(labels, [str(number) for number in np.unique(labels)], None)


def _table(title: str, skew: datasets.Skew) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("clients", "samples (median)", "classes (mean)", "total variation"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{skew.clients:,}",
        f"{skew.samples_min:,} to {skew.samples_max:,} ({skew.samples_median:,g})",
        f"{skew.classes_min} to {skew.classes_max} ({skew.classes_mean:.1f})",
        f"{skew.total_variation:.3f}",
    )
    return table
