"""The draft's side: drafting windows, and rolling out branches over one shared cache."""

from jaxspec.drafts.streams import streaming

__all__ = [
    "streaming",
]
