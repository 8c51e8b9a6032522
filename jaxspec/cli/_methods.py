"""From names on the command line to models and a decoding method."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxspec.cli.checks import at_least, check_models, is_pair
from jaxspec.methods import DecodeSpec, candidates
from jaxspec.methods.candidates import Policy
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
from jaxspec.verify import acceptance

Method = Literal["autoregressive", "speculative", "mirror"]

#: From a budget R to a policy, by name.
POLICIES: dict[str, Callable[[int], Policy]] = {
    "none": lambda budget: candidates.none(),
    "pearl": lambda budget: candidates.pearl(),
    "saguaro": candidates.saguaro,
    "ahead": candidates.ahead,
    "mirror": candidates.mirror,
    "hybrid": lambda budget: candidates.hybrid(budget, budget),
}


def policy_named(name: str, budget: int) -> Policy:
    """Return a policy by its name.

    Raises:
        ValueError: no such policy.
    """
    if name not in POLICIES:
        raise ValueError(f"expected a policy out of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name](budget)


@dataclass(frozen=True)
class Drafting:
    """How windows are drafted and verified.

    Attributes:
        window: tokens drafted per step (γ).
        num_candidates: tokens that the exit sends for each position (κ), for mirror.
        policy: what the draft rolls out ahead, for mirror.
        budget: branches that it rolls out (R); with hybrid, as many for each side.
        exit_layer: layers before the exit; default: the pair's own, else half of the target's.
        streams: lookahead streams of the draft; default: none for an embedded pair, all for a draft in a file.
        acceptance: match gives the tokens of plain decoding with the same seed, ratio their distribution.
    """

    window: int = 7
    num_candidates: int = 4
    policy: Literal["none", "pearl", "saguaro", "ahead", "mirror", "hybrid"] = "mirror"
    budget: int = 4
    exit_layer: int | None = None
    streams: int | None = None
    acceptance: Literal["match", "ratio"] = "match"

    def check(self) -> None:
        """Check the numbers before models are loaded.

        Raises:
            ValueError: a number below its minimum.
        """
        at_least(1, window=self.window, num_candidates=self.num_candidates, budget=self.budget)
        at_least(1, exit_layer=self.exit_layer)
        at_least(0, streams=self.streams)

    def spec(self, method: Method, exit_layer: int | None) -> DecodeSpec:
        """Return the settings of a method, for a pair with an exit of its own or without."""
        if method == "autoregressive":
            return DecodeSpec()
        return DecodeSpec(
            self.window,
            policy_named(self.policy, self.budget) if method == "mirror" else None,
            self.num_candidates,
            self.exit_layer or exit_layer,
            acceptance.match() if self.acceptance == "match" else acceptance.ratio(),
        )


@dataclass(frozen=True)
class Continuations:
    """Prompts that the target continues, to read the draft and the exits along its own text.

    Attributes:
        texts: prompts are windows of these: .txt file, folder of them, or JSON lines with "user" and "text"; default:
            roles of Shakespeare that the embedded pair never saw. Use texts similar to those of later prompts.
        prompts: how many are continued.
        new_tokens: length of each continuation.
    """

    texts: Path | None = None
    prompts: int = 16
    new_tokens: int = 128


def batch_scheduling() -> None:
    """Set Linux's batch policy for this process: a thread that wakes up does not preempt one that works.

    XLA's thread pools wake up and spin several times a step. Where they have as many threads as there are cores, this
    costs Mirror-SD, which keeps all cores busy, a fifth of its speed. Call it before jax makes its threads. Linux only.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def two_devices() -> None:
    """Use two host devices as the two meshes on a CPU; no-op if jax has already made its devices."""
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
        """Return the draft with a number of streams.

        Raises:
            ValueError: it has fewer.
        """
        from jaxspec.drafts.streams import limited

        chosen = self.streaming if streams and self.streaming else self.draft
        return chosen if streams is None or chosen is None else limited(chosen, streams)


def load(
    target: str, draft: Path | None, dtype: str | None = None, int8: bool = False, *, drafting_for: str | None = None
) -> Loaded:
    """Load an embedded or trained pair, or models from files.

    Args:
        target: name or path.
        draft: path; None: the pair's own, or none.
        dtype: of the parameters of both.
        int8: keep the target's matrices in eight bits.
        drafting_for: option or command that needs a draft; a missing draft is refused before models are loaded.

    Raises:
        ValueError: a model that is missing or cannot be loaded.
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
    """Build a method on the first two devices; default: mirror for a pair, speculative with a draft, else plain.

    Raises:
        ValueError: no draft for a method that needs one.
    """
    draft = models.drafting(how.streams)
    if method is None:
        method = "autoregressive" if draft is None else "speculative" if models.exit_layer is None else "mirror"
    return how.spec(method, models.exit_layer).build(models.target, draft, models.exit)
