"""Federated training of a draft; the only subpackage of jaxspec that uses jaxfed beyond its checkpoint layer.

Clients hold private text. On each client the target continues windows of that text, and the draft is trained to predict
the target's tokens. Only draft parameters are sent. The gain is measured as accepted length on unseen text.
"""

from jaxfed.core.lora import LoRA
from jaxfed.data.roles import Role, read_roles, split_roles, split_text
from jaxspec.federated._examples import Continued, TopTokens, accepted_length, client_examples, top_tokens
from jaxspec.federated._gather import UNSEEN, Distilling, gather
from jaxspec.federated._learning import Learning
from jaxspec.federated._methods import (
    METHODS,
    FederatedMethod,
    Federation,
    FedSpeedSettings,
    method_of,
    private,
    transformed,
)
from jaxspec.federated._recipe import FederatedDraft, FederatedSettings, check_federation, federate
from jaxspec.federated._runs import best, compare, run
from jaxspec.federated._sending import Send, SentPart
from jaxspec.federated._setup import VALIDATION, FederatedReport, FederatedSetup, TextProblem, TrainingOutcome
from jaxspec.federated._texts import read_texts
from jaxspec.generation import continued
from jaxspec.text import token_rows

__all__ = [
    "METHODS",
    "UNSEEN",
    "VALIDATION",
    "Continued",
    "Distilling",
    "FedSpeedSettings",
    "FederatedDraft",
    "FederatedMethod",
    "FederatedReport",
    "FederatedSettings",
    "FederatedSetup",
    "Federation",
    "Learning",
    "LoRA",
    "Role",
    "Send",
    "SentPart",
    "TextProblem",
    "TopTokens",
    "TrainingOutcome",
    "accepted_length",
    "best",
    "check_federation",
    "client_examples",
    "compare",
    "continued",
    "federate",
    "gather",
    "method_of",
    "private",
    "read_roles",
    "read_texts",
    "run",
    "split_roles",
    "split_text",
    "token_rows",
    "top_tokens",
    "transformed",
]
