"""Trained exits at the command line: where they are looked for, and what is said where there are none."""

from collections.abc import Sequence
from pathlib import Path

from jaxspec.cli.checks import is_pair
from jaxspec.loading.exits import Exit, has_exits, load_exits
from jaxspec.loading.hub import folder_of
from jaxspec.models.base import Model


def check_exit_file(exit: Path | None) -> None:
    """Check that there is a file of trained exits, before models are loaded.

    Raises:
        ValueError: there is none.
    """
    if exit is not None and not has_exits(exit):
        raise ValueError(
            f"{exit}: expected lens.safetensors or its folder, written by jaxspec train lens, got no such file; train "
            "one, or leave --exit out"
        )


def exits_for(model: Model, target: str, exit: Path | None) -> list[Exit]:
    """Return the exits of a file, by default of the one in the target's folder; none where there is no such file.

    Raises:
        ValueError: a file that is missing or damaged, or one of another target.
    """
    check_exit_file(exit)
    if exit is not None:
        return load_exits(exit, model)
    if is_pair(target):
        return []
    path = folder_of(target)
    folder = path if path.is_dir() else path.parent
    return load_exits(folder, model) if has_exits(folder) else []


def untrained(target: Model, layer: int | None, exits: Sequence[Exit]) -> str:
    """Say that Mirror-SD will read a target's hidden states by the logit lens, and what helps."""
    count = target.network.config.num_layers
    at = max(1, count // 2) if layer is None else layer
    trained = ", ".join(str(exit.layer) for exit in exits)
    return (
        f"jaxspec: no trained exit at layer {at} of {count}"
        + (f" (there are exits at {trained})" if trained else "")
        + ": the logit lens is used, which foresees little unless the model was trained with early exits. `jaxspec "
        "train lens` trains an exit, `jaxspec probe` measures one. The text does not depend on it."
    )
