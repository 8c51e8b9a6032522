"""``tuned.json``: the fastest way to decode that ``jaxspec tune`` found, beside the draft, and read by ``generate``."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.cli._methods import Drafting, Loaded, Method
from jaxspec.cli.checks import check_writable, draft_path
from jaxspec.core import read_json
from jaxspec.core.digests import digest
from jaxspec.generation.requests import Prompt
from jaxspec.models.base import Model
from jaxspec.zoo import PAIRS

if TYPE_CHECKING:
    from jaxspec.analysis import Grid

TUNED = "tuned.json"
"""Name of the file."""
#: Settings that are flags of generate, by the same name.
FLAGS = ("window", "policy", "num_candidates", "budget", "draft_candidates", "exit_layer")


@dataclass(frozen=True)
class TunedDefaults:
    """What a ``tuned.json`` says.

    Attributes:
        path: the file.
        method: name of the method.
        settings: of ``FLAGS``, those that the method has.
        predicted: tokens a second over those of plain decoding, by the cost model.
    """

    path: Path
    method: Method
    settings: dict[str, Any]
    predicted: float

    def completed(self, how: Drafting) -> Drafting:
        """Return the flags, with what was tuned where none was given; a budget belongs to its policy."""
        other = how.policy not in (None, self.settings.get("policy"))
        left_out = ("policy", "budget", "draft_candidates") if other else ()
        unset = [name for name in self.settings if getattr(how, name) is None and name not in left_out]
        return replace(how, **{name: self.settings[name] for name in unset})

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name, value in self.settings.items()]
        gain = f"{self.predicted:.2f}× plain decoding by the cost model"
        return f"{self.path}: " + ", ".join([self.method, *parts, gain])


def machine() -> dict[str, Any]:
    """Return what times depend on: kind and number of devices, cores of the host."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return {"devices": kinds, "count": jax.device_count(), "cores": os.cpu_count()}


def tuned_folder(target: str, draft: Path | None) -> Path:
    """Return the folder of the draft, or of the target without one; it need not be one."""
    path = draft_path(target, draft)
    return Path(target) if path is None else Path(path)


def folder_to_save(target: str, draft: Path | None) -> Path:
    """Return the folder of ``tuned.json``.

    Raises:
        ValueError: draft or target is no folder of the user, or cannot be written to.
    """
    folder = tuned_folder(target, draft)
    if not folder.is_dir() or target in PAIRS and (draft is None or not draft.is_dir()):
        raise ValueError(
            f"expected a folder of a draft, or of a target, to save {TUNED} in, got {folder}; leave --save out, or "
            "write the model into a folder with jaxspec convert"
        )
    check_writable(folder)
    return folder


def fastest(models: Loaded, prompts: Sequence[Prompt], grid: "Grid | None" = None, **options: Any) -> Any:
    """Return what ``analysis.tune`` finds; of trained exits the first is tried unless the grid names layers."""
    from jaxspec.analysis import Grid, tune

    grid = grid or Grid()
    if models.exits:
        models = models.at(grid.exit_layers[0] if grid.exit_layers else None)
        grid = replace(grid, exit_layers=grid.exit_layers or (models.exits[0].layer,))
    rest = {"grid": grid, "exit_layer": models.exit_layer, "exit": models.exit}
    return tune(models.target, models.draft, prompts, **rest, **options)


def write_tuned(folder: Path, tuned: Any, target: Model) -> None:
    """Write the fastest setting, with the machine and the target that it was measured on."""
    chosen = tuned.chosen
    about = {
        "method": chosen.spec.method,
        **settings_of(chosen.spec),
        "batch": tuned.primitives.batch,
        "predicted": tuned.over(chosen, "plain decoding"),
        "target": _name(target),
        "machine": machine(),
    }
    partial = folder / f"{TUNED}.partial"
    partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / TUNED)


def settings_of(spec: Any) -> dict[str, Any]:
    """Return a setting of ``Grid`` as flags of generate."""
    if not spec.window:
        return {}
    found: dict[str, Any] = {"window": spec.window}
    if (policy := spec.policy) is None:
        return found
    name, ranking = spec.label.partition("(")[0], policy.exit or policy.ahead
    found["policy"] = name
    if name not in ("none", "pearl"):
        found["budget"] = ranking.budget or (spec.window + 1) * spec.num_candidates
    if policy.uses_own:
        found["draft_candidates"] = policy.num_candidates
    if policy.exit is not None:
        found |= {"num_candidates": spec.num_candidates, "exit_layer": spec.exit_layer}
    return found


def read_tuned(name: str, draft: Path | None, target: Model) -> tuple[TunedDefaults | None, str]:
    """Return the defaults for these models on this machine, if there are any, and a line about them.

    Args:
        name: of the target, as it was passed.
        draft: as it was passed.
        target: the loaded target.

    Raises:
        ValueError: a file that is damaged; names it.
    """
    path = tuned_folder(name, draft) / TUNED
    if (name in PAIRS and draft is None) or not path.is_file():
        return None, ""
    about = read_json(path)
    try:
        settings = {flag: about[flag] for flag in FLAGS if flag in about}
        found = TunedDefaults(path, about["method"], settings, float(about["predicted"]))
        Drafting(**settings).check(found.method)
        reasons = {
            f"another machine ({_shown(about['machine'])}; this is {_shown(machine())})": about["machine"] != machine(),
            "another target, or another dtype": about["target"] != _name(target),
            f"batches of {about['batch']}": about["batch"] != 1,
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected what jaxspec tune --save writes, got {error!r}; write it again") from error
    wrong = [reason for reason, holds in reasons.items() if holds]
    return (None, f"{path} is for {wrong[0]}, and ignored") if wrong else (found, str(found))


def _shown(about: dict[str, Any]) -> str:
    return f"{about['count']} × {', '.join(about['devices'])}, {about['cores']} cores"


def _name(target: Model) -> str:
    return digest(str(target.network.config), target.params, np.zeros(0))
