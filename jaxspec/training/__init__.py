"""Training and distilling drafts, exit heads and lookahead streams."""

from jaxspec.training._fit import Schedule, fit
from jaxspec.training._held_out import accepted_tokens, mean_window, window_counts
from jaxspec.training._hidden import Hidden, hidden_within
from jaxspec.training._trained import as_float32, trained_part
from jaxspec.training._unroll import drafted_logits
from jaxspec.training.eagle3 import SPECULATORS, Recipe, eagle3_loss
from jaxspec.training.exits import ExitRecipe, FittedExit, exits_loss, fit_exits
from jaxspec.training.heads import eagle_loss, hydra_loss, medusa_loss
from jaxspec.training.imputation import fit_imputation
from jaxspec.training.lens import fit_lens, lens_loss
from jaxspec.training.losses import (
    LossFn,
    bits_per_character,
    distillation_loss,
    hidden_states,
    language_model_loss,
    log_probabilities,
)
from jaxspec.training.ranks import rank_accuracy
from jaxspec.training.reading import fit_draft
from jaxspec.training.streams import draft_loss, fit_streams, streaming_loss
from jaxspec.training.target import ExitCost, early_exit_loss, exit_cost, fit_target
from jaxspec.training.tasks import DraftTask, draft_task

__all__ = [
    "DraftTask",
    "ExitCost",
    "ExitRecipe",
    "FittedExit",
    "Hidden",
    "LossFn",
    "Recipe",
    "SPECULATORS",
    "Schedule",
    "accepted_tokens",
    "as_float32",
    "bits_per_character",
    "distillation_loss",
    "draft_loss",
    "draft_task",
    "drafted_logits",
    "eagle3_loss",
    "eagle_loss",
    "early_exit_loss",
    "exit_cost",
    "exits_loss",
    "fit",
    "fit_draft",
    "fit_exits",
    "fit_imputation",
    "fit_lens",
    "fit_streams",
    "fit_target",
    "hidden_states",
    "hidden_within",
    "hydra_loss",
    "language_model_loss",
    "lens_loss",
    "log_probabilities",
    "mean_window",
    "medusa_loss",
    "rank_accuracy",
    "streaming_loss",
    "trained_part",
    "window_counts",
]
