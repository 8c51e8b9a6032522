"""From names on the command line to a decoding method."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxspec.cli.checks import at_least, check_models, is_pair
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model

Method = Literal["autoregressive", "speculative", "mirror"]


@dataclass(frozen=True)
class Drafting:
    """How windows are drafted and verified.

    Attributes:
        window: tokens drafted a step (γ).
        num_candidates: tokens that the exit sends for each position (κ), for mirror.
        policy: what the draft rolls out ahead, for mirror.
        budget: branches that it rolls out (R); with hybrid, as many for either side.
        exit_layer: layers before the exit; default: the pair's own, else half of the target's.
        streams: lookahead streams of the draft; default: none of an embedded pair's, all that a
            draft in a file has.
        acceptance: match gives the tokens of plain decoding with the same seed, ratio their law.
    """

    window: int = 7
    num_candidates: int = 4
    policy: Literal["none", "pearl", "saguaro", "ahead", "mirror", "hybrid"] = "mirror"
    budget: int = 4
    exit_layer: int | None = None
    streams: int | None = None
    acceptance: Literal["match", "ratio"] = "match"

    def check(self) -> None:
        """Refuses what no model could be decoded with.

        Raises:
            ValueError: a number below its least.
        """
        at_least(1, window=self.window, num_candidates=self.num_candidates, budget=self.budget)
        at_least(1, exit_layer=self.exit_layer)
        at_least(0, streams=self.streams)


def two_devices() -> None:
    """On a CPU two host devices stand for two meshes; nothing where devices have been made already."""
    from jaxspec.cli._bench_methods import batch_scheduling

    batch_scheduling()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", 2)


class Loaded(NamedTuple):
    """Models by their names: target, draft if there is one, the exit of an embedded pair, and its streaming draft."""

    target: Model
    draft: Model | None
    exit: Any = None
    exit_layer: int | None = None
    streaming: Model | None = None

    def drafting(self, streams: int | None) -> Model | None:
        """The draft with so many streams.

        Raises:
            ValueError: it has fewer.
        """
        from jaxspec.drafts.streams import limited

        chosen = self.streaming if streams and self.streaming else self.draft
        return chosen if streams is None or chosen is None else limited(chosen, streams)


def load(
    target: str,
    draft: Path | None,
    dtype: str | None = None,
    int8: bool = False,
    *,
    drafting_for: str | None = None,
) -> Loaded:
    """An embedded or trained pair, or models in files.

    Args:
        target: name or path.
        draft: path; None: the pair's own, or none.
        dtype: of the parameters of both.
        int8: keep the target's matrices in eight bits.
        drafting_for: what needs a draft, in words, so that a missing one is refused before anything is loaded.

    Raises:
        ValueError: whatever the models have to complain about.
    """
    from jaxspec import zoo
    from jaxspec.loading.store import changed, open_model

    check_models(target, draft, dtype, drafting_for)
    own = None if draft is None else open_model(draft, dtype=dtype)
    if not is_pair(target):
        return Loaded(open_model(target, dtype=dtype, int8=int8), own)
    pair = zoo.load(target)
    streaming = None if own or pair.streaming is None else changed(pair.streaming, dtype)
    small = own or changed(pair.draft, dtype)
    return Loaded(changed(pair.target, dtype, int8), small, pair.exit, pair.exit_layer, streaming)


def method_of(models: Loaded, method: Method | None, how: Drafting) -> DecodingMethod:
    """The method on the first two devices; without a name mirror for a pair, speculative with a draft, else plain.

    Raises:
        ValueError: no draft for a method that needs one.
    """
    import jaxspec
    from jaxspec.methods import candidates
    from jaxspec.verify import acceptance

    large, small, head, layer = models.target, models.drafting(how.streams), models.exit, models.exit_layer
    rule = getattr(acceptance, how.acceptance)()
    method = method or ("autoregressive" if small is None else "speculative" if layer is None else "mirror")
    if method == "autoregressive":
        return jaxspec.autoregressive(large)
    if small is None:
        raise ValueError(f"expected a draft for {method}, got none; name a smaller model with the same tokenizer")
    if method == "speculative":
        return jaxspec.speculative(large, small, how.window, acceptance=rule)
    return jaxspec.mirror(
        large,
        small,
        window=how.window,
        num_candidates=how.num_candidates,
        exit_layer=how.exit_layer or layer,
        exit=head,
        policy=candidates.named(how.policy, how.budget),
        acceptance=rule,
    )
