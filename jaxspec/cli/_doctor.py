"""``jaxspec doctor``: do the meshes overlap, and what does the law make of it?"""

from pathlib import Path
from typing import Annotated

import tyro

from jaxspec.cli._methods import Drafting, load, method_of, two_devices
from jaxspec.cli.checks import at_least
from jaxspec.cli.shared import Flag, report
from jaxspec.zoo import PAIRS


def doctor(
    target: str = PAIRS[0],
    draft: Path | None = None,
    prompt: str = "Now is the winter of our discontent\n",
    max_new_tokens: int = 128,
    drafting: Annotated[Drafting, tyro.conf.arg(name="")] = Drafting(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Time every program of a Mirror-SD step alone, then the step as it is; say whether the two meshes overlap.

    Args:
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint.
        draft: a smaller model over the same vocabulary; an embedded pair brings its own.
        prompt: text to continue.
        max_new_tokens: tokens decoded for every measurement.
        drafting: window, policy, exit.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import cost as latency
    from jaxspec.devices.sharding import default_placement

    drafting.check()
    at_least(1, max_new_tokens=max_new_tokens)
    two_devices()
    method = method_of(load(target, draft, drafting_for="jaxspec doctor"), "mirror", drafting)
    found = latency.measure(method, default_placement(), [prompt], max_new_tokens)
    milliseconds = {name: round(1e3 * seconds, 3) for name, seconds in vars(found.parts).items()}
    summary = {
        **{f"{name}_ms": value for name, value in milliseconds.items()},
        "step_ms": round(1e3 * found.step, 3),
        "law_ms": round(1e3 * found.law, 3),
        "overlap": None if found.overlap is None else round(found.overlap, 3),
        "accepted_length": round(found.stats.accepted_length, 3),
        "reuse_rate": round(found.stats.reuse_rate, 3),
    }
    report(summary, json)
    if not json:
        print(verdict(found.overlap))


def verdict(overlap: float | None) -> str:
    """The measurement in words."""
    if overlap is None:
        return "This policy rolls out nothing ahead: there is nothing to hide."
    if overlap > 0.8:
        return "The meshes overlap: what the draft rolls out ahead is hidden."
    if overlap > 0.3:
        return "The meshes overlap in part: they share cores, memory or the thread that enqueues."
    return "The meshes do not overlap: use speculative decoding, or give them devices of their own."
