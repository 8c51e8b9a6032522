"""What a policy would foresee, found without decoding with it: its own rankings, replayed over the target's own text.

Along text that the target wrote itself every step of greedy speculative decoding can be read off (``probe.step_ends``),
and one teacher-forced pass of either model gives what each side would send in it: a ``Message`` of γ+1 places. Whether
the policy's rankings put the outcome (A, next token) among their roots is then counted: FF of any window, κ, R and ℓₑ.

Accepted lengths and the places up to the outcome are those of a real run. Places behind it are not: there a run would
see the rejected tokens, the replay sees the target's text. They matter only where a budget makes places compete.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.analysis._probe import step_ends
from jaxspec.generation.requests import bucket
from jaxspec.methods.candidates import Policy
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training import hidden_states
from jaxspec.verify import Message, join, likely
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.sampling import guess


class Said(NamedTuple):
    """What one side would send at every place: ``others`` than the drafted token, and ``free`` of any; [M, κ]."""

    others: Message
    free: Message


class Foresight(NamedTuple):
    """All places of all texts in a row, M of them, on the host.

    Attributes:
        agrees: whether the draft would say what stands there, a row [T] for each text.
        text: what stands there: [M].
        draft: what the draft holds for likely.
        exits: what the exit after so many layers does.
    """

    agrees: list[np.ndarray]
    text: np.ndarray
    draft: Said
    exits: Mapping[int, Said]


def foresee(
    target: Model,
    draft: Model,
    texts: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    layers: Sequence[int],
    num_candidates: int = 8,
    exit: Any = None,
) -> Foresight:
    """Reads texts once with either model, each where its parameters are.

    Args:
        target: whose exits are asked.
        draft: a model over the same vocabulary.
        texts: prompts and the target's own greedy continuation of each, of any lengths; −1 behind the end of a text
            is left out.
        prompt_lengths: of these, the prompts'.
        layers: ℓₑ of every exit, ascending.
        num_candidates: the largest κ that will be asked for.
        exit: exit head; default ``LogitLens()``.

    Raises:
        ValueError: no text behind a prompt, or layers that do not ascend from 1 to N.
    """
    count = target.network.config.num_layers
    if list(layers) != sorted(set(layers)) or not all(1 <= layer <= count for layer in layers):
        raise ValueError(f"expected ascending layers from 1 to {count}, got {tuple(layers)}")
    texts = [[token for token in text if token >= 0] for text in texts]
    bare = [number for number, text in enumerate(texts) if len(text) <= prompt_lengths[number]]
    if bare or not len(texts):
        raise ValueError(f"expected text behind every prompt, got none behind {bare or 'none'}; continue them first")
    head, rows = LogitLens() if exit is None else exit, []
    size = bucket(max(map(len, texts)))
    for text, length in zip(texts, prompt_lengths, strict=True):
        tokens = np.pad(np.asarray(text, np.int32), (0, size - len(text)))[None]
        drafted, own = _draft_says(draft.network, num_candidates, draft.params, tokens)
        drafted = np.asarray(drafted)
        found = _exits_say(target.network, tuple(layers), num_candidates, target.params, head, tokens, drafted)
        places = slice(length - 1, len(text) - 1)
        said = jax.tree.map(lambda leaf, places=places: np.asarray(leaf)[0, places], (own, *found))
        rows.append((drafted[0, places], np.asarray(text[length:]), *said))
    agrees = [drafted == text for drafted, text, *_ in rows]
    _, text, own, *found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    return Foresight(agrees, text, own, dict(zip(layers, found, strict=True)))


@partial(jax.jit, static_argnums=(0, 1))
def _draft_says(network: Network, kappa: int, params: Params, tokens: Array) -> tuple[Array, Said]:
    logits = network.logits(params, hidden_states(network, params, tokens)[-1])
    drafted = guess(logits)
    return drafted, _said(logits, drafted, kappa)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _exits_say(
    network: Network, layers: tuple[int, ...], kappa: int, params: Params, head: Any, tokens: Array, drafted: Array
) -> list[Said]:
    early = jnp.stack(hidden_states(network, params, tokens, layers)[:-1])
    found = jax.lax.map(lambda x: _said(head(network, params, x), drafted, kappa), early)
    return [jax.tree.map(lambda leaf, number=number: leaf[number], found) for number in range(len(layers))]


def _said(logits: Array, drafted: Array, kappa: int) -> Said:
    masked = jnp.stack([drafted, jnp.full_like(drafted, -1)])
    both = jax.vmap(lambda token: likely(logits, token, kappa))(masked)
    return Said(*(jax.tree.map(lambda leaf, number=number: leaf[number], both) for number in range(2)))


class Steps(NamedTuple):
    """Every step of greedy speculative decoding, n of them.

    Attributes:
        accepted: A: [n].
        following: the token that ends it, correction or bonus: [n].
        places: of its γ+1 places, among the M: [n, γ+1].
    """

    accepted: np.ndarray
    following: np.ndarray
    places: np.ndarray

    @property
    def accepted_length(self) -> float:
        """E[A]."""
        return float(np.mean(self.accepted))

    @property
    def acceptance_rate(self) -> float:
        """α: drafted tokens that were accepted, of those that were asked about."""
        rejected = np.sum(self.accepted < self.places.shape[1] - 1)
        return float(np.sum(self.accepted) / (np.sum(self.accepted) + rejected))


def steps(foresight: Foresight, window: int) -> Steps:
    """The steps that windows of γ tokens have.

    Raises:
        ValueError: no text is longer than a window.
    """
    ends = step_ends(foresight.agrees, window)
    if not ends:
        longest = max(map(len, foresight.agrees))
        raise ValueError(f"expected more than {window} tokens behind a prompt, got {longest}; continue them further")
    row, end, accepted = np.asarray(ends).T
    offsets = np.cumsum([0, *map(len, foresight.agrees)])[row]
    places = (offsets + end - accepted)[:, None] + np.arange(window + 1)
    return Steps(accepted, foresight.text[offsets + end], places)


def foreseen(
    foresight: Foresight, found: Steps, policy: Policy, num_candidates: int = 8, exit_layer: int | None = None
) -> np.ndarray:
    """Whether the policy rolls out what comes true, step by step: [n] bool; FF is the share where it does not.

    Args:
        foresight: by ``foresee``, with at least as many candidates.
        found: its ``steps``.
        policy: what is rolled out ahead.
        num_candidates: κ of the exit's message.
        exit_layer: ℓₑ, for a policy that asks the exit.

    Raises:
        ValueError: more candidates than were asked for, or an exit that was not.
    """
    if policy.exit is not None and exit_layer not in foresight.exits:
        raise ValueError(f"expected an exit out of {tuple(foresight.exits)}, got {exit_layer}")
    own = _along(foresight.draft, found.places, policy.num_candidates) if policy.ahead else None
    sent = _along(foresight.exits[exit_layer], found.places, num_candidates) if policy.exit else None  # type: ignore[index]
    accepted, following = found.accepted.astype(np.int32), found.following.astype(np.int32)
    return np.asarray(_foreseen(policy, own, sent, accepted, following))


def _along(said: Said, places: np.ndarray, kappa: int) -> Said:
    """The first κ at the places of every step: [n, γ, κ] but for the drafted tokens, and [n, 1, κ] behind them."""
    most = said.others.tokens.shape[1]
    if kappa > most:
        raise ValueError(f"expected at most {most} candidates, those that foresee was asked for, got {kappa}")

    def at(message: Message, where: np.ndarray) -> Message:
        return Message(message.tokens[where, :kappa], message.scores[where, :kappa], message.drafted[where])

    return Said(at(said.others, places[:, :-1]), at(said.free, places[:, -1:]))


@partial(jax.jit, static_argnums=0)
def _foreseen(policy: Policy, own: Said | None, sent: Said | None, accepted: Array, following: Array) -> Array:
    """Whether the outcome is a root, [n]; the rankings are called as a step of ``jaxspec.mirror`` calls them."""
    known, found = None, jnp.zeros(accepted.shape, bool)
    for ranking, said in ((policy.ahead, own), (policy.exit, sent)):
        if ranking is None or said is None:
            continue
        count = jnp.full_like(accepted, said.others.tokens.shape[1])
        roots = ranking(join(said.others, said.free, count), known)
        known = roots if known is None else known
        is_root = (roots.accepted == accepted[:, None]) & (roots.tokens == following[:, None])
        found |= jnp.any(is_root, axis=1)
    return found
