"""Text in and out: tokenizers, chat templates, stopping, and windows of text as prompts."""

from jaxspec.text._text import Text, sentencepiece
from jaxspec.text.prompt_files import conversation_of, read_prompts
from jaxspec.text.prompts import Continued, token_rows, tokens_of, windows
from jaxspec.text.stopping import Finish
from jaxspec.text.tokenizer import train_tokenizer

__all__ = [
    "Continued",
    "Finish",
    "Text",
    "conversation_of",
    "read_prompts",
    "sentencepiece",
    "token_rows",
    "tokens_of",
    "train_tokenizer",
    "windows",
]
