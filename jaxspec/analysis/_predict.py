"""Settings by the cost model: replayed steps and measured times make tokens a second.

tokens/s = B·(1 + E[A]) / T        T by ``jaxspec.analysis.cost``; without a draft's model the mean of two steps
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from tqdm import tqdm

from jaxspec.analysis._grid import PLAIN
from jaxspec.analysis._lookup import LookupSteps
from jaxspec.analysis.cost import step_time
from jaxspec.analysis.replay import RecordedSteps, Recording, hits, ready_length, steps
from jaxspec.analysis.timing import Primitives
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.methods.spec import DecodeSpec


@dataclass(frozen=True)
class Prediction:
    """A setting by the cost model.

    Attributes:
        spec: the setting.
        step: T, in seconds.
        accepted_length: E[A].
        fallback_rate: FF of one sequence; of a draft without a model the share of steps that find nothing.
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
        texts: continuations along which windows were replayed.
        left_out: prompts whose continuation was too short for a window.
    """

    rows: list[Prediction]
    primitives: Primitives
    build: Callable[[DecodeSpec], DecodingMethod]
    texts: int = 0
    left_out: int = 0

    @property
    def chosen(self) -> Prediction:
        """The fastest."""
        return self.rows[0]

    @cached_property
    def method(self) -> DecodingMethod:
        """The fastest method; ``jaxspec.autoregressive`` where nothing is faster."""
        return self.build(self.chosen.spec)

    def over(self, row: Prediction, label: str) -> float | None:
        """Return tokens/s over those of the fastest setting of a label, "plain decoding" or "speculative"; or None."""
        speeds = [other.tokens_per_second for other in self.rows if other.spec.label == label]
        return row.tokens_per_second / speeds[0] if speeds else None

    def __str__(self) -> str:
        best = self.chosen
        if not best.spec.window:
            second = self.rows[1]
            return (
                f"Plain decoding is faster: of {len(self.rows) - 1} other settings the best ({second.spec}) "
                f"would reach {self.over(second, PLAIN.label):.2f} of its tokens a second, by the cost model."
            )
        than_draft = None if best.spec.label == "speculative" else self.over(best, "speculative")
        return (
            f"{best.spec}: {1e3 * best.step:.2f} ms a step of {1 + best.accepted_length:.2f} tokens, "
            f"{self.over(best, PLAIN.label):.2f}× plain decoding"
            + ("" if than_draft is None else f", {than_draft:.2f}× speculative decoding at its best window")
            + ", by the cost model."
        )


def predict(
    primitives: Primitives,
    spec: DecodeSpec,
    accepted_length: float,
    fallback_rate: float,
    widths: Mapping[int, float] | None = None,
) -> Prediction:
    """Apply the cost model, with the overlap that was measured.

    Args:
        primitives: measured times.
        spec: the setting.
        accepted_length: E[A].
        fallback_rate: FF.
        widths: of a draft without a model, share of the steps by places verified; default: all or none.
    """
    p = primitives
    if not spec.window:
        return Prediction(spec, p.plain, 0.0, 0.0, p.batch / p.plain)
    if spec.method in p.lookup:
        shares = widths or {0: fallback_rate, spec.window: 1 - fallback_rate}
        step = _widest(shares, p.lookup[spec.method], p.batch)
        return Prediction(spec, step, accepted_length, fallback_rate, p.batch * (1 + accepted_length) / step)
    times = p.speculative(spec.window)
    if spec.policy is not None:
        layer = p.exit_layer if spec.exit_layer is None else spec.exit_layer
        times = p.programs(spec.window, spec.policy, spec.num_candidates, layer)
    step = step_time(times, fallback_rate, p.batch, p.overlap)
    return Prediction(spec, step, accepted_length, fallback_rate, p.batch * (1 + accepted_length) / step)


def ranked(
    primitives: Primitives,
    recording: Recording | None,
    specs: Sequence[DecodeSpec],
    lookups: Mapping[tuple[str, int], LookupSteps] = MappingProxyType({}),
    progress: bool = False,
) -> list[Prediction]:
    """Return all settings by tokens/s, highest first; ties keep their order.

    Args:
        primitives: measured times.
        recording: of the draft, for settings that need one.
        specs: settings.
        lookups: steps of drafts without a model, by method and window.
        progress: show a bar.
    """
    drafted = {spec.window for spec in specs if spec.window and spec.method not in primitives.lookup}
    by_window = {window: steps(recording, window) for window in drafted if recording is not None}
    rows = []
    for spec in tqdm(specs, desc="replay", unit="setting", disable=not progress):
        if (found := lookups.get((spec.method, spec.window))) is not None:
            rows.append(predict(primitives, spec, found.accepted_length, found.empty_rate, found.shares))
            continue
        if spec.window and recording is not None:
            length, rate = _of_draft(recording, by_window[spec.window], spec)
        else:
            length, rate = 0.0, 0.0
        rows.append(predict(primitives, spec, length, rate))
    return sorted(rows, key=lambda row: -row.tokens_per_second)


def _widest(shares: Mapping[int, float], seconds: Mapping[int, float], batch: int) -> float:
    """Return the mean time of a step, which verifies as many places as the widest of its sequences needs."""
    below, mean = 0.0, 0.0
    for width in sorted(shares):
        mean += ((below + shares[width]) ** batch - below**batch) * seconds[width]
        below += shares[width]
    return mean


def _of_draft(recording: Recording, found: RecordedSteps, spec: DecodeSpec) -> tuple[float, float]:
    """Return E[A] and FF of a setting with a draft."""
    length, policy = found.accepted_length, spec.policy
    if policy is None or not (policy.ahead or policy.exit):
        return length, 1.0
    rate = 1.0 - float(hits(recording, found, policy, spec.num_candidates, spec.exit_layer).mean())
    if not starts_from_truth(recording.early, spec):
        length = rate * length + (1 - rate) * ready_length(recording, found)
    return length, rate


def starts_from_truth(early: Sequence[int] | None, spec: DecodeSpec) -> bool:
    """Return whether the branches of a policy start from the target's hidden states, if the draft reads any.

    Args:
        early: exits at which all that it reads is known; None: it reads nothing.
        spec: settings of Mirror-SD.
    """
    policy = spec.policy
    assert policy is not None
    return early is None or (policy.ahead is None and (policy.exit is None or spec.exit_layer in early))
