"""A target on its mesh, with or without a draft: its own texts, what is replayed along them, and its times."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxspec.analysis._grid import Grid
from jaxspec.analysis._laps import TimedPair
from jaxspec.analysis.cost import check_local
from jaxspec.analysis.replay import Recording, record
from jaxspec.analysis.timing import Primitives, measure
from jaxspec.devices.channel import send
from jaxspec.devices.sharding import Placement, default_placement, put_model, replicated_sharding
from jaxspec.drafts import Draft, FeatureDrafter, prompt_lookup
from jaxspec.drafts.ngram import SIZES, NGramDrafter
from jaxspec.drafts.plain import Plain
from jaxspec.drafts.streams import check_no_streams
from jaxspec.generation import continued
from jaxspec.generation.requests import Prompt, request_of
from jaxspec.methods.checks import check_pair
from jaxspec.methods.spec import DecodeSpec
from jaxspec.models.base import Model
from jaxspec.text.prompts import lengths
from jaxspec.verify.exits import LogitLens

#: Prompts continued in one batch; more of them are padded to more different lengths.
TOGETHER = 8


class TargetTexts(NamedTuple):
    """Prompts with the target's greedy continuations, each up to a stop token.

    Attributes:
        texts: token ids.
        starts: tokens of each prompt.
        left_out: prompts whose continuation was too short.
    """

    texts: list[list[int]]
    starts: list[int]
    left_out: int

    def prompts(self, count: int) -> list[np.ndarray]:
        """Return ``count`` prompts, evenly spaced by length: of one the median."""
        order = np.argsort(self.starts, kind="stable")
        chosen = order[((np.arange(count) + 0.5) * len(order) / count).astype(int)]
        return [np.asarray(self.texts[row][: self.starts[row]]) for row in chosen]


class PlacedPair(NamedTuple):
    """Models on their meshes, and an exit.

    Attributes:
        target: network and parameters, as they were passed.
        draft: a language model over the target's vocabulary, or a draft made for it; None: the target alone.
        placement: their meshes.
        exit: exit head, on the target's mesh.
        exit_layer: ℓₑ.
    """

    target: Model
    draft: Model | Draft | None
    placement: Placement
    exit: Any
    exit_layer: int

    @classmethod
    def of(
        cls, target: Model, draft: Model | Draft | None, placement: Placement | None, exit: Any, exit_layer: int | None
    ) -> "PlacedPair":
        """Check and place a pair; None is the default of ``jaxspec.mirror``.

        Raises:
            ValueError: a draft that cannot be replayed, or a mesh of another process.
        """
        where, head = placement or default_placement(), LogitLens() if exit is None else exit
        check_local(where)
        made = None if draft is None else _replayable(target, draft)
        layer = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
        return cls(target, made, where, send(head, replicated_sharding(where.target)), layer)

    @property
    def reader(self) -> Model | Draft | None:
        """The draft, if it is a model."""
        return None if isinstance(self.draft, Draft) and _is_lookup(self.draft) else self.draft

    @property
    def without_model(self) -> dict[str, Draft]:
        """Drafts without a model, by the name of the method that uses each: prompt lookup, and such a draft."""
        own = {"speculative": self.draft} if isinstance(self.draft, Draft) and _is_lookup(self.draft) else {}
        return {"lookup": prompt_lookup(SIZES), **own}

    def write(self, prompts: Sequence[Prompt], new_tokens: int, window: int, progress: bool = False) -> TargetTexts:
        """Return the target's continuations that are longer than a window.

        Raises:
            ValueError: there is none.
        """
        mesh = self.placement.target
        rows = continued(self.target, prompts, new_tokens, progress, TOGETHER, mesh=mesh)
        counts = lengths(rows.tokens) - rows.starts
        kept = np.flatnonzero(counts > window)
        if not len(kept):
            raise ValueError(
                f"expected an answer of more than {window} tokens, the largest window, to one prompt at least, got "
                f"{int(np.max(counts, initial=0))} at most; pass other prompts, more new tokens or smaller windows"
            )
        texts = [rows.tokens[row, : rows.starts[row] + counts[row]].tolist() for row in kept]
        return TargetTexts(texts, rows.starts[kept].tolist(), len(counts) - len(kept))

    def record(self, written: TargetTexts, layers: Sequence[int], num_candidates: int, depths: int) -> Recording:
        """Read the texts with each model (``replay.record``).

        Raises:
            ValueError: there is no draft that is a model.
        """
        made, where = self.reader, self.placement
        if made is None:
            raise ValueError("expected a draft that is a model, got one without; tune compares it with plain decoding")
        reader = _on(made, where.draft) if isinstance(made, Model) else _beside(made, where)
        target = _on(self.target, where.target)
        return record(target, reader, written.texts, written.starts, layers, num_candidates, self.exit, depths)

    def measure(
        self,
        prompts: Sequence[np.ndarray],
        new_tokens: int,
        grid: Grid,
        specs: Sequence[DecodeSpec],
        progress: bool = False,
    ) -> Primitives:
        """Return the times of all settings.

        Args:
            prompts: token ids of one batch.
            new_tokens: of each.
            grid: values that are tried.
            specs: all settings, those of prompt lookup too.
            progress: show a bar.
        """
        widest = max(specs, key=lambda spec: (spec.window, spec.policy is not None))
        method = widest.build(self.target, self.draft, self.exit, self.placement)
        request, capacity = request_of(prompts, method, new_tokens)
        target, kappa = _on(self.target, self.placement.target), max(grid.num_candidates)
        rest = self.placement, self.exit, self.exit_layer, kappa, request, capacity
        lookups = [spec.window for spec in specs if spec.sizes]
        options: dict[str, Any] = {"without_model": self.without_model} if lookups else {}
        pair = TimedPair(target, self.reader, *rest)
        return measure(pair, grid.windows, grid.branches, lookups=lookups, progress=progress, **options)


def _replayable(target: Model, draft: Model | Draft) -> Model | Draft:
    """Return a language model over the target's vocabulary, or a draft made for it that can be replayed."""
    if isinstance(draft, Model):
        check_no_streams(draft, " to tune with")
    made, _ = check_pair(target, draft, 1)
    if type(made.drafter) is Plain:
        return Model(made.drafter.network, made.params, made.text)
    if isinstance(made.drafter, FeatureDrafter) or _is_lookup(made):
        return made
    raise ValueError(
        "expected a language model, a draft without a model, or one of a DraftNetwork that reads hidden states, got "
        f"{type(made.drafter).__name__}, whose windows cannot be replayed; decode with it and compare Stats"
    )


def _is_lookup(draft: Draft) -> bool:
    """Return whether a draft has no model: prompt lookup, or a table of n-grams."""
    return isinstance(draft.drafter, NGramDrafter)


def _on(model: Model, mesh: Any) -> Model:
    """Put a model's parameters on a mesh."""
    network, params, _, _ = put_model(model, mesh)
    return model._replace(network=network, params=params)


def _beside(draft: Draft, where: Placement) -> Draft:
    """Put a draft next to the target, whose hidden states it reads."""
    drafter, params = draft.drafter.put_on_mesh(draft.params, where.target)
    return draft._replace(drafter=drafter, params=params)
