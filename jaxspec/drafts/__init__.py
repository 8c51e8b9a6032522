"""Drafts: the protocol of whatever proposes windows, and plain, streaming and n-gram drafts."""

from jaxspec.drafts import trees
from jaxspec.drafts._making import draft_for
from jaxspec.drafts.base import Branches, Draft, Drafted, Drafter, Notes, Pending, Place, Proposer, Verification, Window
from jaxspec.drafts.ngram import ngram
from jaxspec.drafts.streams import limited, num_streams, streaming

__all__ = [
    "Branches",
    "Draft",
    "Drafted",
    "Drafter",
    "Notes",
    "Pending",
    "Place",
    "Proposer",
    "Verification",
    "Window",
    "draft_for",
    "limited",
    "ngram",
    "num_streams",
    "streaming",
    "trees",
]
