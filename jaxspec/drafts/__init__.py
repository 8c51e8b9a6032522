"""Drafts: the protocol of whatever proposes windows; plain, streaming, n-gram drafts, and those of hidden states."""

from jaxspec.drafts import trees
from jaxspec.drafts._making import draft_for
from jaxspec.drafts.base import Draft, Drafter
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.feature_drafter import FeatureDrafter
from jaxspec.drafts.fresh import frequent_tokens, init_draft
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.drafts.networks import DraftNetwork
from jaxspec.drafts.ngram import prompt_lookup
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Notes, Pending, Verification, Window
from jaxspec.drafts.sizes import DraftKind, DraftSizes, fresh_draft, known_tokens
from jaxspec.drafts.small import small_draft
from jaxspec.drafts.streams import limited, num_streams, streaming
from jaxspec.drafts.table import ngram_table

__all__ = [
    "Branches",
    "Draft",
    "Drafted",
    "Drafter",
    "DraftKind",
    "DraftNetwork",
    "DraftSizes",
    "Eagle",
    "Eagle3",
    "FeatureDrafter",
    "Hydra",
    "Medusa",
    "Notes",
    "Pending",
    "BranchSlots",
    "Proposer",
    "Verification",
    "Window",
    "draft_for",
    "frequent_tokens",
    "fresh_draft",
    "init_draft",
    "known_tokens",
    "limited",
    "prompt_lookup",
    "ngram_table",
    "num_streams",
    "small_draft",
    "streaming",
    "trees",
]
