"""Where a pair lies in the picture of ``whatif``: its draft's cost is timed, acceptance and hit rate are replayed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxspec.analysis._grid import Grid
from jaxspec.analysis._placed import PlacedPair
from jaxspec.analysis.replay import hits, steps
from jaxspec.analysis.timing import Primitives
from jaxspec.analysis.whatif import REFERENCE, Point
from jaxspec.devices.sharding import Placement
from jaxspec.drafts import Draft
from jaxspec.generation.requests import Prompt
from jaxspec.methods import candidates
from jaxspec.methods.checks import check_exit
from jaxspec.methods.spec import DecodeSpec
from jaxspec.models.base import Model


class MeasuredPoint(NamedTuple):
    """A pair on this machine.

    Attributes:
        at: x, α and Ω′.
        exit_share: ℓₑ/N.
        pass_over_plain: the target's pass over a window over a step of plain decoding, which ``whatif`` takes for 1.
        window: γ of the measurement.
    """

    at: Point
    exit_share: float
    pass_over_plain: float
    window: int


def measured_point(
    target: Model,
    draft: Model | Draft,
    prompts: Sequence[Prompt],
    *,
    num_candidates: int = 8,
    exit_layer: int | None = None,
    exit: Any = None,
    placement: Placement | None = None,
    new_tokens: int = 128,
    progress: bool = False,
) -> MeasuredPoint:
    """Time a pair and replay its windows along the target's own answers.

    Args:
        target: network and parameters.
        draft: as for ``tune``.
        prompts: similar to later ones.
        num_candidates: κ; all (γ+1)·κ of the exit's candidates count as foreseen.
        exit_layer: ℓₑ; default N/2.
        exit: exit head; default ``LogitLens()``.
        placement: target and draft mesh; default: the first two devices.
        new_tokens: longest answer.
        progress: show bars.

    Raises:
        ValueError: as ``tune``.
    """
    pair = PlacedPair.of(target, draft, placement, exit, exit_layer)
    layer, count = pair.exit_layer, target.network.config.num_layers
    check_exit(target, layer, num_candidates, pair.exit)
    heads = None if isinstance(pair.draft, Model) or pair.draft is None else pair.draft.drafter.max_window
    window = min(REFERENCE, heads or REFERENCE)
    written = pair.write(prompts, new_tokens, window, progress)
    recording = pair.record(written, (layer,), num_candidates, 2 * window + 1)
    found = steps(recording, window)
    foreseen = float(hits(recording, found, candidates.mirror(), num_candidates, layer).mean())
    grid, spec = Grid((window,), (num_candidates,), ()), DecodeSpec(window, candidates.mirror(), num_candidates, layer)
    times = pair.measure(written.prompts(1), new_tokens, grid, [spec], progress)
    at = Point(_cost(times, window), found.acceptance_rate, foreseen)
    return MeasuredPoint(at, layer / count, times.passes[window].whole / times.plain, window)


def _cost(times: Primitives, window: int) -> float:
    """Return x: a window of ``REFERENCE`` tokens on the draft's mesh over the target's pass."""
    one = times.drafting.enqueue + window * times.drafting.pass_over(1)
    return one * REFERENCE / window / times.passes[window].whole
