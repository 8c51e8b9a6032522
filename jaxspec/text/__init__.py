"""Text in and out: tokenizers, chat templates, stopping, and windows of text as prompts."""

from jaxspec.text._text import Text, sentencepiece
from jaxspec.text._windows import filled, lengths, opened, opening, token_rows, tokens_of, windows
from jaxspec.text.stopping import Finish

__all__ = [
    "Finish",
    "Text",
    "filled",
    "lengths",
    "opened",
    "opening",
    "sentencepiece",
    "token_rows",
    "tokens_of",
    "windows",
]
