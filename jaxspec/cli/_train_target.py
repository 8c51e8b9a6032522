"""``jaxspec train target``: continued training of a target, so that its own head reads an early layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxspec.cli._methods import load
from jaxspec.cli._train_draft import DraftTraining
from jaxspec.cli.answers import Answers, divided
from jaxspec.cli.checks import check_writable


@dataclass(frozen=True)
class TargetTraining:
    """How early exits count; of ``train target`` only.

    Attributes:
        exit_loss: weight of each exit's loss beside that of the last layer.
    """

    exit_loss: float = 0.2

    def __post_init__(self) -> None:
        if self.exit_loss <= 0:
            raise ValueError(f"expected exit_loss > 0, got {self.exit_loss}")


def train_target(asked: Answers, settings: DraftTraining, own: TargetTraining, out: Path) -> dict[str, Any]:
    """Train a target further, write it to ``out/target``, and return figures; an interrupted run resumes from ``out``.

    Raises:
        ValueError: bad settings, a target without a tokenizer, layers that it lacks, texts shorter than a prompt.
    """
    from jaxspec.loading import save_model
    from jaxspec.training import exit_cost, fit_target
    from jaxspec.training.exits import check_layers

    asked.check()
    check_writable(out)
    target = load(asked.target, None).target
    layers = settings.layers or (max(1, target.network.config.num_layers // 2),)
    check_layers(target, layers)
    texts, held_out = divided(asked.written(target, out))
    schedule, steps = asked.timed(settings.schedule), out / "steps"
    options: dict[str, Any] = {"schedule": schedule, "directory": steps, "hidden": asked.hidden(out)}
    trained = fit_target(target, layers, texts, weight=own.exit_loss, **options)
    save_model(trained, out / "target")
    costs = {name: exit_cost(model, layers, held_out) for name, model in (("before", target), ("after", trained))}
    return {name: _figures(cost) for name, cost in costs.items()} | {"target": str(out / "target")}


def _figures(cost: Any) -> dict[str, Any]:
    contained = {
        str(layer): {str(kappa): round(share, 4) for kappa, share in row.items()}
        for layer, row in cost.contained.items()
    }
    return {
        "perplexity": {"prompts": round(cost.prompts, 3), "answers": round(cost.answers, 3)},
        "contained": contained,
    }
