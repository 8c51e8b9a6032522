"""The settings of a decoding method as one value, without models and meshes."""

from dataclasses import dataclass, field
from typing import Any

from jaxspec.devices.sharding import Placement
from jaxspec.drafts import Draft
from jaxspec.drafts.trees import TreePolicy
from jaxspec.methods._autoregressive import autoregressive
from jaxspec.methods._mirror import mirror
from jaxspec.methods._speculative import lookup, speculative
from jaxspec.methods.candidates import Policy
from jaxspec.methods.fallbacks import Fallback, Full
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
from jaxspec.verify.acceptance import Acceptance


@dataclass(frozen=True)
class DecodeSpec:
    """Settings of plain decoding (window 0), prompt lookup (sizes), speculative decoding, or Mirror-SD (a policy).

    Attributes:
        window: γ, tokens drafted per step; 0 without a tree: plain decoding.
        policy: what Mirror-SD rolls out ahead; None: speculative decoding, one program on the target's mesh.
        num_candidates: κ, exit tokens sent for each position.
        exit_layer: ℓₑ; None: half of the target's layers.
        acceptance: None: ``acceptance.match()``.
        fallback: what Mirror-SD drafts where no branch matches the verdict.
        tree: shape that speculative decoding drafts; its depth replaces ``window``.
        sizes: n of the n-grams that prompt lookup tries, in this order; without any it is another method.
        label: name in tables; default: the method's. Not part of the comparison.

    Raises:
        ValueError: a tree with a policy, or one that is none of ``drafts.trees``; prompt lookup with either.
    """

    window: int = 0
    policy: Policy | None = None
    num_candidates: int = 8
    exit_layer: int | None = None
    acceptance: Acceptance | None = None
    fallback: Fallback = Full()
    tree: TreePolicy | None = None
    sizes: tuple[int, ...] = ()
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.tree is not None and not hasattr(self.tree, "grow"):
            raise ValueError(f"expected a tree, such as jaxspec.drafts.trees.static((4, 2, 1)), got {self.tree!r}")
        if self.policy is not None and self.tree is not None:
            raise ValueError("expected a tree or a policy, got both; a tree is for speculative decoding: policy=None")
        if self.sizes and (self.policy is not None or self.tree is not None):
            raise ValueError("expected sizes of n-grams without policy and tree; prompt lookup has neither")

    @property
    def method(self) -> str:
        """Name of the method: "autoregressive", "lookup", "speculative" or "mirror"."""
        if self.sizes:
            return "lookup"
        if not self.window and self.tree is None:
            return "autoregressive"
        return "speculative" if self.policy is None else "mirror"

    def build(
        self, target: Model, draft: Model | Draft | None = None, exit: Any = None, placement: Placement | None = None
    ) -> DecodingMethod:
        """Build the method for a pair of models.

        Args:
            target: network and parameters whose text is generated.
            draft: a model with the target's tokenizer, or a draft of another kind; not used by plain decoding
                and prompt lookup.
            exit: exit head, for Mirror-SD; default ``LogitLens()``.
            placement: target and draft mesh; all but Mirror-SD use the target's only. Default: the first
                device, or the first two for Mirror-SD.

        Raises:
            ValueError: a window or tree without a draft, or what the method refuses.
        """
        mesh = None if placement is None else placement.target
        if self.method == "autoregressive":
            return autoregressive(target, mesh)
        if self.method == "lookup":
            return lookup(target, self.window, self.sizes, mesh)
        if draft is None:
            raise ValueError(
                f"expected a draft for {self.method} decoding, got none; pass a smaller model with the same tokenizer"
            )
        if self.policy is None:
            return speculative(target, draft, self.window, mesh, acceptance=self.acceptance, tree=self.tree)
        return mirror(
            target,
            draft,
            window=self.window,
            num_candidates=self.num_candidates,
            exit_layer=self.exit_layer,
            exit=exit,
            policy=self.policy,
            placement=placement,
            acceptance=self.acceptance,
            fallback=self.fallback,
        )

    def __str__(self) -> str:
        parts = [self.label or self.method]
        if self.tree is not None:
            parts.append(f"tree of depth {self.tree.max_depth}")
        elif self.window:
            parts.append(f"window {self.window}")
        if self.policy is not None and self.policy.exit:
            parts.append(f"{self.num_candidates} candidates at exit {self.exit_layer or 'N/2'}")
        return ", ".join(parts)
