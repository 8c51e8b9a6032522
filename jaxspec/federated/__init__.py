"""Federated drafts: the bridge, the one package that uses jaxfed beyond its checkpoint layer.

Clients hold private text. On a client the target continues windows of that text, and the draft learns to say what the
target says there; only drafts travel. The gain is accepted length on text of the same clients that nobody trained on.
"""

from jaxfed.data.roles import Role, read_roles, split_roles, split_text
from jaxspec.federated._examples import Continued, Laws, accepted_length, client_examples, continued, laws
from jaxspec.federated._methods import METHODS, Federation, FedSpeedSettings, Method, method_of, private, transformed
from jaxspec.federated._recipe import UNSEEN, Distilling, Federated, Settings, check_plan, federate, gather
from jaxspec.federated._runs import VALIDATION, Outcome, Problem, Report, Setup, best, compare, run
from jaxspec.federated._texts import read_texts
from jaxspec.text import token_rows, windows

__all__ = [
    "METHODS",
    "UNSEEN",
    "VALIDATION",
    "Continued",
    "Distilling",
    "FedSpeedSettings",
    "Federated",
    "Federation",
    "Laws",
    "Method",
    "Outcome",
    "Problem",
    "Report",
    "Role",
    "Settings",
    "Setup",
    "accepted_length",
    "best",
    "check_plan",
    "client_examples",
    "compare",
    "continued",
    "federate",
    "gather",
    "laws",
    "method_of",
    "private",
    "read_roles",
    "read_texts",
    "run",
    "split_roles",
    "split_text",
    "token_rows",
    "transformed",
    "windows",
]
