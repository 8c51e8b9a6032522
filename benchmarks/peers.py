"""Models of transformers, with which decoding is compared."""

import tempfile
from typing import Any

import jaxspec


def transformers_model(model: jaxspec.Model) -> Any:
    """The same weights as a float32 model of transformers."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        jaxspec.save_huggingface(model, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
