"""Select the fastest way to decode: programs are timed, policies are replayed, the cost model combines both.

    tokens/s = B·(1 + E[A]) / T        T by ``jaxspec.analysis.cost``, from ``timing`` and the FF of ``replay``

Nothing is decoded with the settings. Plain decoding is one of them, selected where it is the fastest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm

from jaxspec.analysis._grid import PLAIN, Grid
from jaxspec.analysis.cost import check_local, step_time
from jaxspec.analysis.replay import Recording, hits, ready_length, record, steps
from jaxspec.analysis.timing import Primitives, TimedPair, measure
from jaxspec.devices.channel import send
from jaxspec.devices.sharding import Placement, default_placement, put_model, replicated_sharding
from jaxspec.drafts import Draft, FeatureDrafter
from jaxspec.drafts.plain import Plain
from jaxspec.drafts.streams import check_no_streams
from jaxspec.generation import generate
from jaxspec.generation.requests import Prompt, encoded, request_of
from jaxspec.methods.checks import check_exit, check_pair
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.methods.spec import DecodeSpec
from jaxspec.models.base import Model
from jaxspec.verify.exits import LogitLens


@dataclass(frozen=True)
class Prediction:
    """A setting by the cost model.

    Attributes:
        spec: the setting.
        step: T, in seconds.
        accepted_length: E[A].
        fallback_rate: FF of one sequence.
        tokens_per_second: of the whole batch.
    """

    spec: DecodeSpec
    step: float
    accepted_length: float
    fallback_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Tuned:
    """The result of ``tune``.

    Attributes:
        rows: all settings, the fastest first.
        primitives: the measured times from which the rows are computed.
        build: from a setting to its method.
    """

    rows: list[Prediction]
    primitives: Primitives
    build: Callable[[DecodeSpec], DecodingMethod]

    @property
    def chosen(self) -> Prediction:
        """The fastest."""
        return self.rows[0]

    @cached_property
    def method(self) -> DecodingMethod:
        """The fastest method; ``jaxspec.autoregressive`` where nothing is faster."""
        return self.build(self.chosen.spec)

    def over(self, row: Prediction, label: str) -> float:
        """Return tokens/s over those of the fastest setting of a label, "plain decoding" or "speculative"."""
        return row.tokens_per_second / next(r for r in self.rows if r.spec.label == label).tokens_per_second

    def __str__(self) -> str:
        best = self.chosen
        if not best.spec.window:
            second = self.rows[1]
            return (
                f"Plain decoding is faster: of {len(self.rows) - 1} other settings the best ({second.spec}) "
                f"would reach {self.over(second, PLAIN.label):.2f} of its tokens a second."
            )
        return (
            f"{best.spec}: {1e3 * best.step:.2f} ms a step of {1 + best.accepted_length:.2f} tokens, "
            f"{self.over(best, PLAIN.label):.2f}× plain decoding, {self.over(best, 'speculative'):.2f}× speculative "
            "decoding at its best window."
        )


def predict(primitives: Primitives, spec: DecodeSpec, accepted_length: float, fallback_rate: float) -> Prediction:
    """Apply the cost model, with the overlap that was measured."""
    p = primitives
    if not spec.window:
        return Prediction(spec, p.plain, 0.0, 0.0, p.batch / p.plain)
    times = p.speculative(spec.window)
    if spec.policy is not None:
        layer = p.exit_layer if spec.exit_layer is None else spec.exit_layer
        times = p.programs(spec.window, spec.policy, spec.num_candidates, layer)
    step = step_time(times, fallback_rate, p.batch, p.overlap)
    return Prediction(spec, step, accepted_length, fallback_rate, p.batch * (1 + accepted_length) / step)


def ranked(
    primitives: Primitives, recording: Recording, specs: Sequence[DecodeSpec], progress: bool = False
) -> list[Prediction]:
    """Return all settings by tokens/s, highest first; ties keep their order."""
    by_window = {window: steps(recording, window) for window in {spec.window for spec in specs if spec.window}}
    rows = []
    for spec in tqdm(specs, desc="replay", unit="setting", disable=not progress):
        length = by_window[spec.window].accepted_length if spec.window else 0.0
        rate = 1.0 if spec.window else 0.0
        if spec.policy is not None and (spec.policy.ahead or spec.policy.exit):
            found = by_window[spec.window]
            rate = 1.0 - float(hits(recording, found, spec.policy, spec.num_candidates, spec.exit_layer).mean())
            if not starts_from_truth(recording.early, spec):
                length = rate * length + (1 - rate) * ready_length(recording, found)
        rows.append(predict(primitives, spec, length, rate))
    return sorted(rows, key=lambda row: -row.tokens_per_second)


def starts_from_truth(early: Sequence[int] | None, spec: DecodeSpec) -> bool:
    """Return whether the branches of a policy start from the target's hidden states, if the draft reads any.

    Args:
        early: exits at which all that it reads is known; None: it reads nothing.
        spec: settings of Mirror-SD.
    """
    policy = spec.policy
    assert policy is not None
    return early is None or (policy.ahead is None and (policy.exit is None or spec.exit_layer in early))


def tune(
    target: Model,
    draft: Model | Draft,
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
        draft: a model with the target's tokenizer (``vocabulary.fitted``), or a draft that reads hidden states. One
            with heads is tried with as many tokens as it has heads, and with branches where these start from the
            target's own hidden states.
        prompts: texts, conversations or token ids, similar to later ones.
        grid: values to try.
        exit_layer: ℓₑ of the exit head, timed as one program; default N/2.
        exit: exit head, also tried at other layers; default ``LogitLens()``.
        placement: target and draft mesh; default: the first two devices. With a single device nothing overlaps.
        new_tokens: length of the continuations on which the policies are replayed.
        batch: B, sequences that will be decoded together.
        progress: show bars.

    Raises:
        ValueError: arguments that ``jaxspec.mirror`` refuses, too few new tokens for a window, or a kind of draft that
            cannot be replayed.
    """
    made = _replayable(target, draft)
    grid = grid.limited(None if isinstance(made, Model) else made.drafter.max_window)
    where, head = placement or default_placement(), LogitLens() if exit is None else exit
    own = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
    layers, kappa = grid.layers(own, target.network.config), max(grid.num_candidates)
    _check(target, where, head, {own, *layers}, grid, new_tokens)
    head, on_target = send(head, replicated_sharding(where.target)), _on(target, where.target)

    def build(spec: DecodeSpec) -> DecodingMethod:
        return spec.build(target, made, head, where)

    ids = encoded(prompts, target.text)
    new = generate(build(PLAIN), [row.tolist() for row in ids], new_tokens, stop=[], progress=progress).tokens
    texts = [[*prompt.tolist(), *more] for prompt, more in zip(ids, new, strict=True)]
    reader = _on(made, where.draft) if isinstance(made, Model) else _beside(made, where)
    depths = 2 * max(grid.windows) + 1
    recording = record(on_target, reader, texts, [len(row) for row in ids], layers, kappa, head, depths)
    specs = [spec for spec in grid.specs(layers) if _is_tried(recording.early, made, spec)]
    widest = build(max(specs, key=lambda spec: (spec.window, spec.policy is not None)))
    rows = [ids[number % len(ids)] for number in range(batch)]
    request, capacity = request_of(rows, widest, new_tokens)
    pair = TimedPair(on_target, made, where, head, own, kappa, request, capacity)
    primitives = measure(pair, grid.windows, grid.branches, progress=progress)
    return Tuned(ranked(primitives, recording, specs, progress), primitives, build)


def _replayable(target: Model, draft: Model | Draft) -> Model | Draft:
    """Return a language model over the target's vocabulary, or a draft that reads hidden states, made for it."""
    if isinstance(draft, Model):
        check_no_streams(draft, " to tune with")
    made, _ = check_pair(target, draft, 1)
    if type(made.drafter) is Plain:
        return Model(made.drafter.network, made.params, made.text)
    if isinstance(made.drafter, FeatureDrafter):
        return made
    raise ValueError(
        f"expected a language model, or a draft of a DraftNetwork that reads hidden states, got "
        f"{type(made.drafter).__name__}, whose windows cannot be replayed; decode with it and compare Stats"
    )


def _is_tried(early: Sequence[int] | None, made: Model | Draft, spec: DecodeSpec) -> bool:
    """Return whether a setting may pay: heads draft nothing of use from older hidden states."""
    has_heads = not isinstance(made, Model) and made.drafter.max_window is not None
    return not has_heads or spec.policy is None or starts_from_truth(early, spec)


def _check(target: Model, where: Placement, head: Any, layers: set[int], grid: Grid, new_tokens: int) -> None:
    check_local(where)
    for layer in layers:
        check_exit(target, layer, max(grid.num_candidates), head)
    if new_tokens <= max(grid.windows):
        raise ValueError(f"expected new_tokens > {max(grid.windows)}, the largest window, got {new_tokens}")


def _on(model: Model, mesh: Any) -> Model:
    """Put a model's parameters on a mesh."""
    network, params, _, _ = put_model(model, mesh)
    return model._replace(network=network, params=params)


def _beside(draft: Draft, where: Placement) -> Draft:
    """Put a draft next to the target, whose hidden states it reads."""
    drafter, params = draft.drafter.put_on_mesh(draft.params, where.target)
    return draft._replace(drafter=drafter, params=params)
