"""Published checkpoints and saved models: read onto a mesh, and written back."""

from jaxspec.loading._draft_saving import save_draft
from jaxspec.loading._saving import save_huggingface
from jaxspec.loading.drafts import is_draft, load_draft
from jaxspec.loading.exits import Exit, load_exit, load_exits, save_exits
from jaxspec.loading.gguf import convert_gguf, load_gguf
from jaxspec.loading.huggingface import load_huggingface
from jaxspec.loading.llama2c import load_llama2c
from jaxspec.loading.packaged import fetch
from jaxspec.loading.store import convert, load_model, open_model, save_model

__all__ = [
    "Exit",
    "convert",
    "convert_gguf",
    "fetch",
    "is_draft",
    "load_draft",
    "load_exit",
    "load_exits",
    "load_gguf",
    "load_huggingface",
    "load_llama2c",
    "load_model",
    "open_model",
    "save_draft",
    "save_exits",
    "save_huggingface",
    "save_model",
]
