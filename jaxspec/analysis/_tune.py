"""Select the fastest way to decode: programs are timed, windows and policies replayed, the cost model combines both.

Nothing is decoded with the settings. Plain decoding is one of them, selected where it is the fastest; prompt lookup is
always among them.
"""

from collections.abc import Sequence
from typing import Any

from jaxspec.analysis._grid import PLAIN, Grid
from jaxspec.analysis._lookup import lookup_steps
from jaxspec.analysis._placed import PlacedPair
from jaxspec.analysis._predict import Tuned, ranked, starts_from_truth
from jaxspec.analysis.replay import Recording
from jaxspec.devices.sharding import Placement
from jaxspec.drafts import Draft
from jaxspec.generation.requests import Prompt
from jaxspec.methods.checks import check_exit
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.methods.spec import DecodeSpec
from jaxspec.models.base import Model


def tune(
    target: Model,
    draft: Model | Draft | None,
    prompts: Sequence[Prompt],
    *,
    grid: Grid = Grid(),
    exit_layer: int | None = None,
    exit: Any = None,
    placement: Placement | None = None,
    new_tokens: int = 128,
    batch: int = 1,
    progress: bool = False,
) -> Tuned:
    """Find the fastest way to decode such prompts greedily on these meshes; takes minutes, mostly to compile.

    Args:
        target: network and parameters whose text is generated.
        draft: a model with the target's tokenizer (``vocabulary.fitted``), a draft that reads hidden states, or a
            table of n-grams, of which speculative decoding alone is tried. One with heads is tried with as many tokens
            as it has heads, and with branches where these start from the target's own hidden states. None: plain
            decoding and prompt lookup alone are compared.
        prompts: texts, conversations or token ids, similar to later ones.
        grid: values to try.
        exit_layer: ℓₑ of the exit head, timed as one program; default N/2.
        exit: exit head, also tried at other layers; default ``LogitLens()``.
        placement: target and draft mesh; default: the first two devices. With a single device nothing overlaps.
        new_tokens: longest continuation; it ends at the target's stop tokens. One that is no longer than the largest
            window is left out.
        batch: B, sequences that will be decoded together.
        progress: show bars.

    Raises:
        ValueError: arguments that ``jaxspec.mirror`` refuses, too few new tokens for a window, no continuation that is
            longer than one, or a kind of draft that cannot be replayed.
    """
    pair = PlacedPair.of(target, draft, placement, exit, exit_layer)
    lookups, grid = grid.windows, grid.limited(None if pair.reader is None else _heads(pair.reader))
    layers = _layers(pair, grid, new_tokens, max(lookups))
    written = pair.write(prompts, new_tokens, max(lookups), progress)
    recording, depths = None, 2 * max(grid.windows) + 1
    if pair.reader is not None:
        recording = pair.record(written, layers, max(grid.num_candidates), depths)
    specs = _specs(pair, grid, lookups, layers, recording)
    primitives = pair.measure(written.prompts(batch), new_tokens, grid, specs, progress)
    looked_up = {
        (name, window): lookup_steps(found, written.texts, written.starts, window)
        for name, found in pair.without_model.items()
        for window in lookups
    }
    rows = ranked(primitives, recording, specs, looked_up, progress)
    return Tuned(rows, primitives, _builder(pair), len(written.texts), written.left_out)


def _builder(pair: PlacedPair) -> Any:
    def build(spec: DecodeSpec) -> DecodingMethod:
        return spec.build(pair.target, pair.draft, pair.exit, pair.placement)

    return build


def _heads(made: Model | Draft) -> int | None:
    return None if isinstance(made, Model) else made.drafter.max_window


def _layers(pair: PlacedPair, grid: Grid, new_tokens: int, window: int) -> tuple[int, ...]:
    """Return the exits to try, after checks of what can be checked before the target writes."""
    if new_tokens <= window:
        raise ValueError(f"expected new_tokens > {window}, the largest window, got {new_tokens}")
    if pair.reader is None:
        return ()
    layers = grid.layers(pair.exit_layer, pair.target.network.config)
    for layer in {pair.exit_layer, *layers}:
        check_exit(pair.target, layer, max(grid.num_candidates), pair.exit)
    return layers


def _specs(
    pair: PlacedPair, grid: Grid, lookups: Sequence[int], layers: Sequence[int], recording: Recording | None
) -> list[DecodeSpec]:
    """Return all settings that may pay, plain decoding first."""
    alone = [PLAIN, *Grid.lookups(lookups)]
    if recording is None or pair.reader is None:
        return alone if pair.draft is None else [*alone, *Grid.chains(lookups)]
    early, made = recording.early, pair.reader
    return alone + [spec for spec in grid.specs(layers)[1:] if _is_tried(early, made, spec)]


def _is_tried(early: Sequence[int] | None, made: Model | Draft, spec: DecodeSpec) -> bool:
    """Return whether a setting may pay: heads draft nothing of use from older hidden states."""
    return _heads(made) is None or spec.policy is None or starts_from_truth(early, spec)
