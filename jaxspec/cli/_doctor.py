"""``jaxspec doctor``: do the meshes overlap, and what does the cost model predict?"""

from pathlib import Path
from typing import Annotated

import tyro

from jaxspec.cli._methods import Drafting, load, method_of, two_devices
from jaxspec.cli.checks import at_least, check_readable
from jaxspec.cli.shared import Flag, prompts_of, report
from jaxspec.zoo import PAIRS


def doctor(
    target: str = PAIRS[0],
    draft: Path | None = None,
    prompt: str = "Now is the winter of our discontent\n",
    prompts: Path | None = None,
    count: int = 4,
    max_new_tokens: int = 128,
    drafting: Annotated[Drafting, tyro.conf.arg(name="")] = Drafting(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Time every program of a Mirror-SD step alone and then a step in normal operation: do the two meshes overlap?

    It also counts the bytes that cross between the meshes in a step: the exit's candidates, the hidden states that a
    draft reads (early: with the candidates, late: with the verdict), the verdict and the next window. On a TPU it also
    times a step of plain decoding with its single column doubled and as it is.

    "independent" is the mean step of these programs on two devices that share nothing, each step with or without the
    fallback that it had (``jaxspec.analysis.clocks``); "predicted" is the cost model's, of medians.

    Args:
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint.
        draft: as for generate; an embedded pair has its own.
        prompt: text to continue, without --prompts.
        prompts: file of prompts to decode one by one instead, as for tune; times are medians over them.
        count: how many of these, evenly spaced over the file.
        max_new_tokens: tokens decoded for every measurement.
        drafting: window, policy, exit.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import cost, crossing
    from jaxspec.analysis.clocks import replayed
    from jaxspec.analysis.columns import column_times
    from jaxspec.devices.sharding import default_placement

    drafting.check("mirror")
    at_least(1, max_new_tokens=max_new_tokens, count=count)
    check_readable(prompts)
    two_devices()
    models = load(target, draft, drafting_for="jaxspec doctor", exit=drafting.exit).at(drafting.exit_layer)
    method, own = method_of(models, "mirror", drafting), models.drafting(drafting.streams)
    assert own is not None
    crosses = crossing.step_bytes(models.target, own, drafting.spec("mirror", models))
    chosen = [prompt] if prompts is None else prompts_of(models.target.text, count, [prompts])
    numbers, place = max(64, crosses.largest // 4), default_placement()
    timing = cost.pooled([cost.measure(method, place, [each], max_new_tokens, numbers=numbers) for each in chosen])
    summary = {
        **{f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in vars(timing.times).items()},
        **{f"{name}_bytes": count for name, count in crosses._asdict().items()},
        "step_ms": round(1e3 * timing.step, 3),
        "predicted_ms": round(1e3 * timing.predicted, 3),
        "independent_ms": round(1e3 * replayed(timing).step, 3),
        "overlap": None if timing.overlap is None else round(timing.overlap, 3),
        "accepted_length": round(timing.stats.accepted_length, 3),
        "reuse_rate": round(timing.stats.reuse_rate, 3),
    }
    columns = None
    if place.target.devices.flat[0].platform == "tpu":
        columns = column_times(models.target, place.target)
        summary |= {f"{name}_column_ms": round(1e3 * seconds, 3) for name, seconds in columns._asdict().items()}
    report(summary, json)
    if not json:
        print(verdict(timing.overlap))
        if columns is not None:
            print(columns.advice)


def verdict(overlap: float | None) -> str:
    """Describe the measured overlap in a sentence."""
    if overlap is None:
        return "This policy rolls out nothing ahead, so nothing can overlap."
    if overlap > 0.8:
        return "The meshes overlap: the time of the rollouts is hidden."
    if overlap > 0.3:
        return "The meshes overlap in part: they share cores, memory or the thread that enqueues."
    return "The meshes do not overlap: use speculative decoding, or give them devices of their own."
