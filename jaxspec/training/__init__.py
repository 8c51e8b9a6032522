"""Training and distilling drafts, exits and lookahead streams."""

from jaxspec.training.streams import fit_streams, streaming_loss
from jaxspec.training.train import (
    Schedule,
    TrainState,
    bits_per_character,
    cross_entropy,
    distillation_loss,
    fit,
    fit_lens,
    hidden_states,
    language_model_loss,
    lens_loss,
    log_probabilities,
)

__all__ = [
    "Schedule",
    "TrainState",
    "bits_per_character",
    "cross_entropy",
    "distillation_loss",
    "fit",
    "fit_lens",
    "fit_streams",
    "hidden_states",
    "language_model_loss",
    "lens_loss",
    "log_probabilities",
    "streaming_loss",
]
