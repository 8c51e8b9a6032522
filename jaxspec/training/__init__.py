"""Training and distilling drafts, exit heads and lookahead streams."""

from jaxspec.training._fit import Schedule, fit
from jaxspec.training.lens import fit_lens, lens_loss
from jaxspec.training.losses import (
    LossFn,
    bits_per_character,
    distillation_loss,
    hidden_states,
    language_model_loss,
    log_probabilities,
)
from jaxspec.training.streams import draft_loss, fit_streams, streaming_loss

__all__ = [
    "LossFn",
    "Schedule",
    "bits_per_character",
    "distillation_loss",
    "draft_loss",
    "fit",
    "fit_lens",
    "fit_streams",
    "hidden_states",
    "language_model_loss",
    "lens_loss",
    "log_probabilities",
    "streaming_loss",
]
