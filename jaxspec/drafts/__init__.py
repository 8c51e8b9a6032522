"""Drafts: the protocol of whatever proposes windows, and plain, streaming and n-gram drafts."""

from jaxspec.drafts import trees
from jaxspec.drafts._making import draft_for
from jaxspec.drafts.base import Draft, Drafter
from jaxspec.drafts.fresh import frequent_tokens, init_draft
from jaxspec.drafts.ngram import prompt_lookup
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Notes, Pending, Verification, Window
from jaxspec.drafts.streams import limited, num_streams, streaming

__all__ = [
    "Branches",
    "Draft",
    "Drafted",
    "Drafter",
    "Notes",
    "Pending",
    "BranchSlots",
    "Proposer",
    "Verification",
    "Window",
    "draft_for",
    "frequent_tokens",
    "init_draft",
    "limited",
    "prompt_lookup",
    "num_streams",
    "streaming",
    "trees",
]
