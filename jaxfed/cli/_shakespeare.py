"""A small federated task from the embedded text: next-character prediction, every Shakespeare role a client."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from jaxfed.core.types import LossFn, Params
from jaxfed.data.batches import ClientData, client_data
from jaxfed.data.characters import alphabet_of, next_characters
from jaxfed.data.roles import read_roles, split_text
from jaxfed.models import NextCharacter, cross_entropy, functional
from jaxfed.run.metrics import classification, client_evaluator

CONTEXT = 16
MIN_CHARS = 2000


class LearningTask(NamedTuple):
    """What `simulate` needs in addition to the algorithm.

    Attributes:
        data: the clients' samples, from the first four fifths of each role.
        params: initial parameters.
        loss_fn: cross-entropy of the next character.
        evaluate: "unseen_loss" (nats per sample) and "unseen_accuracy" on samples that no client trains on, pooled, and
            what `jaxfed.metrics.summary` adds over clients, such as "unseen_accuracy/worst_10%".
    """

    data: ClientData
    params: Params
    loss_fn: LossFn
    evaluate: Callable[[Params], dict[str, float]]


def next_character(num_clients: int, seed: int = 0) -> LearningTask:
    """Return the task of the first `num_clients` roles, by id, of at least 2,000 characters; 65,437 parameters.

    Raises:
        ValueError: there are fewer such roles.
    """
    roles = read_roles()
    clients = [role for role in roles if len(role.text) >= MIN_CHARS]
    if not 1 <= num_clients <= len(clients):
        raise ValueError(
            f"expected 1 to {len(clients)} clients, the roles of {MIN_CHARS} characters, got {num_clients}"
        )
    alphabet = alphabet_of(role.text for role in roles)
    halves = zip(*(split_text(role.text) for role in clients[:num_clients]), strict=True)
    seen, unseen = ([next_characters(text, alphabet, CONTEXT) for text in texts] for texts in halves)
    params, apply = functional(NextCharacter(len(alphabet), CONTEXT, rngs=nnx.Rngs(seed)))
    measure = client_evaluator(classification(apply), client_data(unseen), batch_size=4096)

    def evaluate(params: Params) -> dict[str, float]:
        return {f"unseen_{name}": number for name, number in measure(params).items()}

    return LearningTask(client_data(seen), params, cross_entropy(apply), evaluate)
