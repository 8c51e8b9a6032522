"""From names on the command line to models and a decoding method."""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from jaxspec.cli.checks import at_least, check_models, check_readable, draft_path, is_pair
from jaxspec.cli.exits import check_exit_file, exits_for, untrained
from jaxspec.cli.shared import prompts_of
from jaxspec.drafts import Draft, trees
from jaxspec.drafts.ngram import SIZES
from jaxspec.drafts.trees import TreePolicy
from jaxspec.loading import is_draft, load_draft
from jaxspec.loading.exits import Exit
from jaxspec.loading.hub import folder_of
from jaxspec.methods import DecodeSpec, candidates
from jaxspec.methods.candidates import Policy
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
from jaxspec.text import Text
from jaxspec.verify import acceptance

Method = Literal["autoregressive", "lookup", "speculative", "mirror"]
#: Those that need a draft.
WITH_DRAFT = ("speculative", "mirror")
#: γ by default.
WINDOW = 7

#: From a budget R, and κ of the draft's own candidates, to a policy, by name.
POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "none": lambda budget, own: candidates.none(),
    "pearl": lambda budget, own: candidates.pearl(),
    "saguaro": lambda budget, own: candidates.saguaro(budget, num_candidates=own),
    "ahead": lambda budget, own: candidates.ahead(budget, num_candidates=own),
    "mirror": lambda budget, own: candidates.mirror(budget, num_candidates=own),
    "hybrid": lambda budget, own: candidates.hybrid(budget, budget, num_candidates=own),
}


def tree_named(text: str) -> TreePolicy:
    """Return a tree: "4,2,1", children at each depth, or "dynamic:10,6,60", top_k, depth and nodes, or "dynamic".

    Raises:
        ValueError: another form, or numbers that make no tree.
    """
    kind, colon, numbers = text.rpartition(":") if text != "dynamic" else ("dynamic", "", "")
    parts = [part.strip() for part in numbers.split(",")] if numbers else []
    if kind not in ("", "dynamic") or not all(part.isdecimal() for part in parts) or (colon and not parts):
        raise ValueError(
            f"expected a tree such as 4,2,1 (children at each depth) or dynamic:10,6,60 (top_k, depth, nodes), got "
            f"{text!r}"
        )
    counts = tuple(map(int, parts))
    if kind == "dynamic" and len(counts) not in (0, 3):
        raise ValueError(f"expected dynamic:TOP_K,DEPTH,NODES or dynamic, got {text!r}")
    return trees.dynamic(*counts) if kind else trees.static(counts)


def policy_named(name: str, budget: int, own_candidates: int = 8) -> Policy:
    """Return a policy by its name.

    Raises:
        ValueError: no such policy.
    """
    if name not in POLICIES:
        raise ValueError(f"expected a policy out of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name](budget, own_candidates)


@dataclass(frozen=True)
class Drafting:
    """How windows are drafted and verified.

    Attributes:
        window: tokens drafted per step (γ). Default: 7, or as many as the draft has heads.
        tree: draft a tree of tokens instead of a window, for speculative: 4,2,1 are the children of every node at each
            depth; dynamic:10,6,60 keeps the best (top_k, depth, nodes).
        num_candidates: tokens that the exit sends for each position (κ), for mirror. Default: 4.
        policy: what the draft rolls out ahead, for mirror, which is the default.
        budget: branches that it rolls out (R); with hybrid, as many for each side. Default: 4.
        draft_candidates: tokens that the draft itself lists for each position, for saguaro, ahead, mirror and hybrid.
            Default: 8.
        exit_layer: layers before the exit; default: the pair's own, that of a trained exit, else half of the target's.
        exit: exits that train lens wrote; default: those in the target's folder, if there are any.
        streams: lookahead streams of the draft; default: none for an embedded pair, all for a draft in a file.
        acceptance: match gives the tokens of plain decoding with the same seed, ratio their distribution.
    """

    window: int | None = None
    tree: str | None = None
    num_candidates: int | None = None
    policy: Literal["none", "pearl", "saguaro", "ahead", "mirror", "hybrid"] | None = None
    budget: int | None = None
    draft_candidates: int | None = None
    exit_layer: int | None = None
    exit: Path | None = None
    streams: int | None = None
    acceptance: Literal["match", "ratio"] = "match"

    def check(self, *methods: Method | None) -> None:
        """Check the settings before models are loaded.

        Args:
            *methods: that they are for.

        Raises:
            ValueError: a number below its minimum, or a tree that none of the methods or not the acceptance can use.
        """
        at_least(1, window=self.window, num_candidates=self.num_candidates, budget=self.budget)
        at_least(1, exit_layer=self.exit_layer, draft_candidates=self.draft_candidates)
        check_exit_file(self.exit)
        at_least(0, streams=self.streams)
        if self.tree is None:
            return
        tree_named(self.tree)
        if not {None, "speculative"} & set(methods):
            raise ValueError(
                f"expected the method speculative with --tree, got {', '.join(map(str, methods))}; leave --tree out"
            )
        if self.acceptance != "match":
            raise ValueError(
                f"expected --acceptance match with --tree, got {self.acceptance}, which verifies windows alone"
            )

    def spec(self, method: Method, models: "Loaded") -> DecodeSpec:
        """Return the settings of a method for these models; a tree is for speculative decoding alone."""
        if method == "autoregressive":
            return DecodeSpec()
        if method == "lookup":
            return DecodeSpec(WINDOW if self.window is None else self.window, sizes=SIZES)
        mirrors, most = method == "mirror", models.max_window
        return DecodeSpec(
            min(WINDOW, most or WINDOW) if self.window is None else self.window,
            policy_named(self.policy or "mirror", self.budget or 4, self.draft_candidates or 8) if mirrors else None,
            self.num_candidates or 4,
            self.exit_layer or models.exit_layer,
            acceptance.match() if self.acceptance == "match" else acceptance.ratio(),
            tree=None if mirrors or self.tree is None else tree_named(self.tree),
        )


@dataclass(frozen=True)
class Continuations:
    """Prompts that the target continues, to read the draft and the exits along its own text.

    Attributes:
        prompts: similar to those that will be decoded. .jsonl with "prompt", "question", "messages" or "turns": whole
            prompts, put through the target's chat template if it has one. .txt files, folders of them, or JSON lines
            with "user" and "text": windows of these. Default: roles of Shakespeare that the embedded pair never saw.
        count: how many prompts are continued.
        new_tokens: longest continuation.
    """

    prompts: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--texts",))] = ()
    count: int = 16
    new_tokens: int = 128

    def check(self, window: int) -> None:
        """Check the numbers and paths before models are loaded.

        Raises:
            ValueError: a number below its minimum, a path that cannot be read.
        """
        at_least(1, count=self.count)
        at_least(window + 1, new_tokens=self.new_tokens)
        for path in self.prompts:
            check_readable(path)

    def read(self, text: Text | None) -> list[list[int]]:
        """Return the token ids of the prompts."""
        return prompts_of(text, self.count, self.prompts)


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
    """Models by their names: target, draft if there is one, an exit, a streaming draft, and all trained exits."""

    target: Model
    draft: Model | Draft | None
    exit: Any = None
    exit_layer: int | None = None
    streaming: Model | None = None
    exits: tuple[Exit, ...] = ()

    def at(self, layer: int | None) -> "Loaded":
        """Return it with the exit of a layer, where exits were trained; the logit lens where none was for this one."""
        if layer is None or not self.exits:
            return self
        heads = {exit.layer: exit.head for exit in self.exits}
        return self._replace(exit=heads.get(layer), exit_layer=layer)

    @property
    def max_window(self) -> int | None:
        """Most tokens of a window, for a draft that has a head for each."""
        return self.draft.drafter.max_window if isinstance(self.draft, Draft) else None

    @property
    def language_model(self) -> Model | None:
        """The draft, where it was loaded as a language model."""
        assert not isinstance(self.draft, Draft)
        return self.draft

    def drafting(self, streams: int | None) -> Model | Draft | None:
        """Return the draft with a number of streams.

        Raises:
            ValueError: it has fewer, or is no language model.
        """
        from jaxspec.drafts.streams import limited

        chosen = self.streaming if streams and self.streaming else self.draft
        return chosen if streams is None or chosen is None else limited(chosen, streams)  # type: ignore[arg-type]


def load(
    target: str,
    draft: Path | None,
    dtype: str | None = None,
    int8: bool = False,
    *,
    drafting_for: str | None = None,
    exit: Path | None = None,
) -> Loaded:
    """Load an embedded or trained pair, or models from files; the draft may be one that reads hidden states.

    Args:
        target: name or path.
        draft: path, or name of one of the pair's drafts; None: the pair's own language model, or none.
        dtype: of the parameters of both.
        int8: keep the target's matrices in eight bits.
        drafting_for: option or command that needs a draft; a missing draft is refused before models are loaded.
        exit: file of trained exits, or its folder; default: the one in the target's folder, if there is one.

    Raises:
        ValueError: a model or exit that is missing or cannot be loaded.
    """
    models = _load(target, draft, dtype, int8, drafting_for)
    exits = tuple(exits_for(models.target, target, exit))
    return models._replace(exit=exits[0].head, exit_layer=exits[0].layer, exits=exits) if exits else models


def _load(target: str, draft: Path | None, dtype: str | None, int8: bool, drafting_for: str | None) -> Loaded:
    from jaxspec import zoo
    from jaxspec.loading.store import changed, open_model

    check_models(target, draft, dtype, drafting_for)
    named = draft_path(target, draft)
    path = None if named is None else folder_of(named)
    reads = path is not None and is_draft(path)
    own: Any = None if path is None or reads else open_model(path, dtype=dtype)
    if not is_pair(target):
        model = open_model(target, dtype=dtype, int8=int8)
        return Loaded(model, load_draft(path, model, dtype=dtype) if reads and path else own)
    pair = zoo.load(target)
    model, streaming = changed(pair.target, dtype), None
    if path is None:
        own, streaming = changed(pair.draft, dtype), pair.streaming and changed(pair.streaming, dtype)
    small = load_draft(path, model, dtype=dtype) if reads and path else own
    return Loaded(changed(model, None, int8), small, pair.exit, pair.exit_layer, streaming)


def load_language_models(
    target: str, draft: Path | None, use: str, needed: bool = True, exit: Path | None = None
) -> Loaded:
    """Load what ``load`` does, for a command whose draft must be a language model.

    Args:
        target: name or path.
        draft: path.
        use: option or command that the draft is for.
        needed: whether a missing draft is refused.
        exit: as of ``load``.

    Raises:
        ValueError: a draft of another kind, before models are loaded, or what ``load`` refuses.
    """
    check_models(target, draft)
    if (path := draft_path(target, draft)) is not None and is_draft(folder_of(path)):
        raise ValueError(
            f"{path}: expected a language model as --draft for {use}, got a draft that reads hidden states; "
            "pass a smaller model with the same tokenizer"
        )
    return load(target, draft, drafting_for=use if needed else None, exit=exit)


def method_of(models: Loaded, method: Method | None, how: Drafting) -> DecodingMethod:
    """Build a method on the first two devices.

    Default: speculative for a tree, mirror for a pair or with a trained exit, speculative with a draft, else plain.

    Raises:
        ValueError: no draft for a method that needs one.
    """
    draft, models = models.drafting(how.streams), models.at(how.exit_layer)
    if method is None:
        mirrors = models.exit_layer is not None and draft is not None and how.tree is None
        method = "mirror" if mirrors else "autoregressive" if draft is None else "speculative"
    spec = how.spec(method, models)
    if spec.policy is not None and spec.policy.exit is not None and models.exit is None:
        print(untrained(models.target, spec.exit_layer, models.exits), file=sys.stderr)
    return spec.build(models.target, draft, models.exit)
