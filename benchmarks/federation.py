"""Which weights of FedSpeed? One at a time around the default, on clients that the demo does not use.

    python benchmarks/federation.py [--first 64] [--seeds 0 1] [--prox-weights 0.03 0.3] ...

Each line is a JSON object: a setting, and accepted tokens a step (window 7) on the clients' unseen text, mean and
deviation over seeds; the learning rate of every run is chosen on validation roles, as in the demo. The last lines are
FedAvg and centralised.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tyro

from jaxspec import federated, zoo
from jaxspec.demo import Federable, FederatingSettings, federable
from jaxspec.federated import Federation, FedSpeedSettings
from jaxspec.zoo.recipe import held_out_roles


@dataclass(frozen=True)
class Options:
    """What is tried. ``first``: place of the first client among the held-out roles; the demo uses 8 to 55."""

    first: int = 64
    seeds: tuple[int, ...] = (0, 1)
    prox_weights: tuple[float, ...] = (0.03, 0.3)
    ascent_radii: tuple[float, ...] = (0.05,)
    merge_weights: tuple[float, ...] = (0.25, 1.0)
    rounds: int = Federation.rounds
    learning_rates: tuple[float, ...] = Federation.learning_rates


def row(name: str, settings: Federation, data: Federable, pair: zoo.Pair, seeds: tuple[int, ...]) -> dict[str, Any]:
    """One setting over all seeds."""
    found, rates = [], []
    for seed in seeds:
        seeded = replace(settings, seed=seed)
        report = federated.compare(pair.draft, *data, seeded, names=[name], progress=False)
        found.append(report.acceptance[name])
        rates.append(report.outcomes[name].learning_rate)
    about = {"before": report.acceptance["before"], "learning_rates": rates}
    return {"method": name, "accepted": float(np.mean(found)), "deviation": float(np.std(found)), **about}


def main(options: Options) -> None:
    """Prints a line for every setting of FedSpeed, then one for each rival."""
    pair, sizes = zoo.load("shakespeare"), FederatingSettings()
    data = federable(sizes, pair, held_out_roles()[options.first :], progress=False)
    base = replace(sizes.federation, rounds=options.rounds, learning_rates=options.learning_rates)
    tried = [FedSpeedSettings()]
    tried += [FedSpeedSettings(prox_weight=weight) for weight in options.prox_weights]
    tried += [FedSpeedSettings(ascent_radius=radius) for radius in options.ascent_radii]
    tried += [FedSpeedSettings(merge_weight=weight) for weight in options.merge_weights]
    for speed in tried:
        line = row("fedspeed", replace(base, fedspeed=speed), data, pair, options.seeds)
        print(json.dumps({**asdict(speed), **line}), flush=True)
    for name in ("fedavg", "centralised"):
        print(json.dumps(row(name, base, data, pair, options.seeds)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
