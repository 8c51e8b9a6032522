"""Which way to decode: primitives are timed, what policies foresee is read off, the law of a step does the rest.

    tokens/s = B·(1 + E[A]) / T        T by ``jaxspec.analysis.cost``, from ``primitives`` and the FF of ``foresight``

No setting is decoded with; what is compiled for one is the small program that replays its rankings. Plain decoding is
among them, and is what comes out where it is the fastest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm

from jaxspec.analysis.cost import check_local, step_time
from jaxspec.analysis.foresight import Foresight, foresee, foreseen, steps
from jaxspec.analysis.timing import Primitives, Setup, measure
from jaxspec.devices.channel import send
from jaxspec.devices.sharding import Placement, default_placement, put_model, replicated_sharding
from jaxspec.generation import generate
from jaxspec.generation.requests import Prompt, encoded, request_of
from jaxspec.methods import autoregressive, candidates, mirror, speculative
from jaxspec.methods.candidates import Policy
from jaxspec.methods.checks import MANY_BRANCHES, check_exit, check_pair
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
from jaxspec.models.config import DecoderConfig
from jaxspec.models.vocabulary import fitted
from jaxspec.verify.exits import LogitLens


@dataclass(frozen=True)
class Setting:
    """One way to decode.

    Attributes:
        name: of the method or policy.
        window: γ; 0: plain decoding.
        policy: what is rolled out ahead; None: speculative decoding as one program on the target's mesh.
        num_candidates: κ of the exit's message.
        exit_layer: ℓₑ.
    """

    name: str
    window: int = 0
    policy: Policy | None = None
    num_candidates: int = 1
    exit_layer: int = 1

    def __str__(self) -> str:
        policy, said = self.policy or Policy(), [self.name]
        said += [f"window {self.window}"] if self.window else []
        said += [f"{self.num_candidates} candidates at exit {self.exit_layer}"] if policy.exit else []
        return ", ".join(said)


PLAIN = Setting("plain decoding")


@dataclass(frozen=True)
class Grid:
    """What is tried.

    Attributes:
        windows: γ.
        num_candidates: κ of the exit's message, and of the draft's own.
        budgets: R of a side; None: all (γ+1)·κ of the exit's candidates.
        exit_layers: ℓₑ; None: the pair's own, and a quarter, half and three quarters of the target.

    Raises:
        ValueError: nothing to try, or a number below 1.
    """

    windows: tuple[int, ...] = (1, 3, 5, 7)
    num_candidates: tuple[int, ...] = (4, 8)
    budgets: tuple[int | None, ...] = (4, 8, None)
    exit_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        numbers = [*self.windows, *self.num_candidates, *(self.exit_layers or ())]
        numbers += [budget for budget in self.budgets if budget is not None]
        if not self.windows or not self.num_candidates or min(numbers) < 1:
            raise ValueError(f"expected windows and candidates, each number >= 1, got {self}")

    def layers(self, own: int, config: DecoderConfig) -> tuple[int, ...]:
        """ℓₑ, ascending, for an exit of one's ``own``; of a target in tracks only where these meet."""
        count, tracks = config.num_layers, config.tracks
        quarters = {max(1, count * quarter // 4) for quarter in (1, 2, 3)}
        if tracks is not None:
            quarters &= set(tracks.meetings(count))
        return tuple(sorted(set(self.exit_layers or quarters | {own})))

    def settings(self, layers: Sequence[int]) -> list[Setting]:
        """All of them, plain decoding first."""
        few, most = [r for r in self.budgets if r is not None], max(self.num_candidates)
        found = [PLAIN]
        for window in self.windows:
            found += [Setting("speculative", window), Setting("none", window, candidates.none())]
            found += [Setting("pearl", window, candidates.pearl())]
            found += [Setting(f"saguaro({r})", window, candidates.saguaro(r, num_candidates=most)) for r in few]
            found += [Setting(f"ahead({r})", window, candidates.ahead(r, num_candidates=most)) for r in few]
            for kappa in self.num_candidates:
                every = (window + 1) * kappa
                limits = dict.fromkeys(r if r and r < every else None for r in self.budgets)
                if every > MANY_BRANCHES:
                    limits.pop(None, None)
                asked = [(f"mirror({r or 'all'})", candidates.mirror(r)) for r in limits]
                asked += [(f"hybrid({r}, {r})", candidates.hybrid(r, r, num_candidates=most)) for r in few]
                found += [Setting(name, window, policy, kappa, layer) for name, policy in asked for layer in layers]
        return found

    @property
    def branches(self) -> tuple[int, ...]:
        """R to time, from one to the most that a setting rolls out: powers of four between."""
        few = [r for r in self.budgets if r is not None]
        every = (max(self.windows) + 1) * max(self.num_candidates)
        most = max([2 * r for r in few] + [every] * (None in self.budgets) + [1])
        return tuple(sorted({*(4**power for power in range(20) if 4**power < most), most}))


@dataclass(frozen=True)
class Row:
    """What the law makes of a setting.

    Attributes:
        setting: the setting.
        step: T, in seconds.
        accepted_length: E[A].
        fallback_rate: FF of one sequence.
        tokens_per_second: of the whole batch.
    """

    setting: Setting
    step: float
    accepted_length: float
    fallback_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Tuned:
    """The outcome.

    Attributes:
        rows: all settings, the fastest first.
        primitives: what they were put together from.
        build: from a setting to its method.
    """

    rows: list[Row]
    primitives: Primitives
    build: Callable[[Setting], DecodingMethod]

    @property
    def chosen(self) -> Row:
        """The fastest."""
        return self.rows[0]

    @cached_property
    def method(self) -> DecodingMethod:
        """How to decode; ``jaxspec.autoregressive`` where nothing is faster."""
        return self.build(self.chosen.setting)

    def over(self, row: Row, name: str) -> float:
        """Tokens a second over those of the fastest setting of a name, "plain decoding" or "speculative"."""
        return row.tokens_per_second / next(r for r in self.rows if r.setting.name == name).tokens_per_second

    def __str__(self) -> str:
        best = self.chosen
        if not best.setting.window:
            runner = self.rows[1]
            return (
                f"Plain decoding is faster: of {len(self.rows) - 1} other settings the best ({runner.setting}) "
                f"would reach {self.over(runner, PLAIN.name):.2f} of its tokens a second."
            )
        return (
            f"{best.setting}: {1e3 * best.step:.2f} ms a step of {1 + best.accepted_length:.2f} tokens, "
            f"{self.over(best, PLAIN.name):.2f}× plain decoding, {self.over(best, 'speculative'):.2f}× speculative "
            "decoding at its best window."
        )


def predict(primitives: Primitives, setting: Setting, accepted_length: float, fallback_rate: float) -> Row:
    """The law of a step, with the overlap that was measured."""
    p, s = primitives, setting
    if not s.window:
        return Row(s, p.plain, 0.0, 0.0, p.batch / p.plain)
    parts = p.vanilla(s.window) if s.policy is None else p.parts(s.window, s.policy, s.num_candidates, s.exit_layer)
    step = step_time(parts, fallback_rate, p.batch, p.overlap)
    return Row(s, step, accepted_length, fallback_rate, p.batch * (1 + accepted_length) / step)


def ranked(
    primitives: Primitives, foresight: Foresight, settings: Sequence[Setting], progress: bool = False
) -> list[Row]:
    """All settings by tokens a second, the earlier one first among equals."""
    windows = {s.window for s in settings if s.window}
    found = {window: steps(foresight, window) for window in windows}
    rows = []
    for setting in tqdm(settings, desc="replay", unit="setting", disable=not progress):
        window, policy = setting.window, setting.policy
        length = found[window].accepted_length if window else 0.0
        rate = 1.0 if window else 0.0
        if policy is not None and (policy.ahead or policy.exit):
            hits = foreseen(foresight, found[window], policy, setting.num_candidates, setting.exit_layer)
            rate = 1.0 - float(hits.mean())
        rows.append(predict(primitives, setting, length, rate))
    return sorted(rows, key=lambda row: -row.tokens_per_second)


def builder(
    target: Model, draft: Model, placement: Placement, exit: Any = LogitLens()
) -> Callable[[Setting], DecodingMethod]:
    """From a setting to its method, for a pair on its meshes."""

    def build(setting: Setting) -> DecodingMethod:
        if not setting.window:
            return autoregressive(target, placement.target)
        if setting.policy is None:
            return speculative(target, draft, setting.window, placement.target)
        return mirror(
            target,
            draft,
            window=setting.window,
            num_candidates=setting.num_candidates,
            exit_layer=setting.exit_layer,
            exit=exit,
            policy=setting.policy,
            placement=placement,
        )

    return build


def tune(
    target: Model,
    draft: Model,
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
    """The way to decode such prompts greedily on these meshes; minutes, most of which go into compiling.

    Args:
        target: network and parameters whose text comes out.
        draft: a model with the target's tokenizer (``vocabulary.fitted``).
        prompts: texts, conversations or token ids, like those to come.
        grid: what is tried.
        exit_layer: ℓₑ for which the exit head was made, timed as one program; default N/2.
        exit: exit head, tried at the other layers as well; default ``LogitLens()``.
        placement: target and draft mesh; default: the first two devices. A single one hides nothing.
        new_tokens: length of the continuations on which the policies are replayed.
        batch: B, sequences that will be decoded together.
        progress: show bars.

    Raises:
        ValueError: what ``jaxspec.mirror`` has to complain about, or too few new tokens for a window.
    """
    where, head = placement or default_placement(), LogitLens() if exit is None else exit
    config, kappa = target.network.config, max(grid.num_candidates)
    own = max(1, config.num_layers // 2) if exit_layer is None else exit_layer
    layers = grid.layers(own, config)
    check_local(where)
    if draft.network.streams is not None:
        raise ValueError(
            "expected a plain draft to tune with, got one with streams, whose passes hang on the text; "
            "pass models.streams.limited(draft, 0)"
        )
    for layer in {own, *layers}:
        check_exit(target, layer, kappa, head)
    if new_tokens <= max(grid.windows):
        raise ValueError(f"expected more than {max(grid.windows)} new tokens for a window of so many, got {new_tokens}")
    check_pair(target, draft, min(grid.windows))
    draft = fitted(target, draft)

    head = send(head, replicated_sharding(where.target))
    build, setup_draft = builder(target, draft, where, head), draft
    target, draft = _on(target, where.target), _on(draft, where.draft)
    settings = grid.settings(layers)
    widest = build(max(settings, key=lambda s: (s.window, s.num_candidates, s.exit_layer)))
    ids = encoded(prompts, target.text)
    new = generate(build(PLAIN), [row.tolist() for row in ids], new_tokens, stop=[], progress=progress).tokens
    texts = [[*prompt.tolist(), *more] for prompt, more in zip(ids, new, strict=True)]
    foresight = foresee(target, draft, texts, [len(row) for row in ids], layers, kappa, head)
    asked = [ids[number % len(ids)] for number in range(batch)]
    request, capacity = request_of(asked, widest, new_tokens)
    setup = Setup(target, setup_draft, where, head, own, kappa, request, capacity)
    primitives = measure(setup, grid.windows, grid.branches, progress=progress)
    return Tuned(ranked(primitives, foresight, settings, progress), primitives, build)


def _on(model: Model, mesh: Any) -> Model:
    """A model whose parameters are on a mesh, so that they are moved once."""
    network, params, _, _ = put_model(model, mesh)
    return model._replace(network=network, params=params)
