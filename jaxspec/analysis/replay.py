"""The hit rate of a policy, without decoding: its rankings are replayed over the target's own text.

One pass of each model over a recorded text gives what each side would send in every step of greedy decoding: a
``Message`` of γ+1 positions. A step is a hit if the policy's roots contain its outcome (A, next token); FF is the share
of the other steps, for any window, κ, R and ℓₑ.

Accepted lengths and the positions up to the outcome are those of a real run. Positions after the outcome are not: a run
has the rejected tokens there, the replay has the text. This matters only where positions compete for a budget.

What a draft that reads hidden states predicts depends on the place where its window begins: it is read from every
place, K tokens deep, and each place has K positions. At the first token of a text it has nothing to read; there all it
drafts counts as wrong or right by chance.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.analysis._reading import check_layers, map_exits, padded_length, step_ends
from jaxspec.drafts import Draft, DraftNetwork
from jaxspec.methods.candidates import Policy
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training import drafted_logits, hidden_states
from jaxspec.verify import Message, join, likely, open_ended
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.sampling import guess


class SideMessages(NamedTuple):
    """What one side would send at every position: candidates without the drafted token, and with it; [M, κ]."""

    masked: Message
    unmasked: Message


class Recording(NamedTuple):
    """All positions of all texts, concatenated to M, on the host; with K positions of each place, to M·K.

    Attributes:
        agrees: whether the draft's most likely token equals the token of the text, one row per text: [T], or [T, K].
        text: the tokens: [M].
        draft: the draft's candidates.
        exits: candidates of the exit after so many layers.
        depths: K; 1 for a language model.
        early: exits at which all that the draft reads is known; None for a language model.
    """

    agrees: list[np.ndarray]
    text: np.ndarray
    draft: SideMessages
    exits: Mapping[int, SideMessages]
    depths: int = 1
    early: tuple[int, ...] | None = None


def record(
    target: Model,
    draft: Model | Draft,
    texts: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    layers: Sequence[int],
    num_candidates: int = 8,
    exit: Any = None,
    depths: int = 16,
) -> Recording:
    """Read texts once with each model, on the devices of its parameters.

    Args:
        target: whose exits are read.
        draft: a model over the same vocabulary, or a draft that reads hidden states, on the target's devices.
        texts: prompts with the target's greedy continuations, of any lengths; −1 after the end of a text.
        prompt_lengths: of the prompts in ``texts``.
        layers: ℓₑ of every exit, ascending.
        num_candidates: the largest κ that will be replayed.
        exit: exit head; default ``LogitLens()``.
        depths: K of a draft that reads hidden states: one more than the largest window that will be replayed, and for
            ``ready_length`` twice the window and one.

    Raises:
        ValueError: no text after a prompt, or layers that do not ascend from 1 to N.
    """
    layers = check_layers(layers, target.network.config.num_layers)
    texts = [[token for token in text if token >= 0] for text in texts]
    empty = [number for number, text in enumerate(texts) if len(text) <= prompt_lengths[number]]
    if empty or not len(texts):
        raise ValueError(f"expected text after every prompt, got none after {empty or 'none'}; continue them first")
    head, rows, depths = LogitLens() if exit is None else exit, [], 1 if isinstance(draft, Model) else depths
    longest, most = (
        max(map(len, texts)),
        max(len(text) - start for text, start in zip(texts, prompt_lengths, strict=True)),
    )
    for text, start in zip(texts, prompt_lengths, strict=True):
        tokens = np.pad(np.asarray(text, np.int32), (0, padded_length(len(text), longest) - len(text)))[None]
        places = np.minimum(start - 1 + np.arange(most + depths - 1), len(text) - 1)
        drafted, own = _read(target, draft, tokens, places[:most], depths, num_candidates)
        drafted, sizes = np.asarray(drafted), (layers, num_candidates, depths)  # the draft may be on another mesh
        exits = _read_exits(target.network, sizes, target.params, head, tokens, places, drafted)
        count = len(text) - start
        messages = jax.tree.map(lambda leaf, count=count: _flat(np.asarray(leaf)[0, :count]), (own, *exits))
        rows.append((drafted[0, :count], np.asarray(text[start:]), *messages))
    agrees = [drafted == _following(text, depths) for drafted, text, *_ in rows]
    agrees = [line[:, 0] for line in agrees] if isinstance(draft, Model) else agrees
    _, text, own, *exits = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    return Recording(agrees, text, own, dict(zip(layers, exits, strict=True)), depths, _early(draft, layers))


def _flat(values: np.ndarray) -> np.ndarray:
    """Return values [T, K, …] as [T·K, …]."""
    return values.reshape(-1, *values.shape[2:])


def _following(text: np.ndarray, depths: int) -> np.ndarray:
    """Return each token and those behind it: [T, K]; −1 behind the end."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(text, (0, depths - 1), constant_values=-1), depths)


def _early(draft: Model | Draft, layers: Sequence[int]) -> tuple[int, ...] | None:
    if isinstance(draft, Model):
        return None
    reads = draft.drafter.reads
    return tuple(layer for layer in layers if not reads.final and max(reads.taps, default=0) <= layer)


def _read(
    target: Model, draft: Model | Draft, tokens: Any, places: Any, depths: int, kappa: int
) -> tuple[Any, SideMessages]:
    """Return the draft's tokens [1, p, K] and candidates [1, p, K, κ] at places of a text."""
    if isinstance(draft, Model):
        return _read_draft(draft.network, kappa, draft.params, tokens, places)
    network = draft.drafter.network  # type: ignore[attr-defined]
    return _read_chains((network, target.network), depths, kappa, (draft.params, target.params), tokens, places)


@partial(jax.jit, static_argnums=(0, 1))
def _read_draft(
    network: Network, kappa: int, params: Params, tokens: Array, places: Array
) -> tuple[Array, SideMessages]:
    logits = network.logits(params, hidden_states(network, params, tokens)[-1][:, :, places])
    drafted = guess(logits)
    return jax.tree.map(lambda leaf: leaf[:, :, None], (drafted, _messages(logits, drafted, kappa)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _read_chains(
    networks: tuple[DraftNetwork, Network],
    depths: int,
    kappa: int,
    params: tuple[Params, Params],
    tokens: Array,
    places: Array,
) -> tuple[Array, SideMessages]:
    found, (network, of) = [], networks
    count = min(depths, network.depth or depths)
    for logits in drafted_logits(network, params[0], Model(of, params[1]), tokens, count):
        # Row t has the token at t + 1 as the root of its window.
        logits = jnp.pad(logits[:, :, :-1], ((0, 0), (0, 0), (1, 0)))[:, :, places]
        drafted = guess(logits)
        found.append((drafted, _messages(logits, drafted, kappa)))
    found += found[-1:] * (depths - len(found))  # behind the last head; no window reaches them
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=2), *found)


@partial(jax.jit, static_argnums=(0, 1))
def _read_exits(
    network: Network,
    sizes: tuple[tuple[int, ...], int, int],
    params: Params,
    head: Any,
    tokens: Array,
    places: Array,
    drafted: Array,
) -> list[SideMessages]:
    """Return the candidates of every exit at the first p of p + K − 1 places, K deep."""
    layers, kappa, depths = sizes
    states = [x[:, :, places] for x in hidden_states(network, params, tokens, layers)[:-1]]
    count = drafted.shape[1]

    def summary(logits: Array) -> SideMessages:
        every = [_messages(logits[:, :, at : at + count], drafted[:, :, at], kappa) for at in range(depths)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=2), *every)

    stacked = map_exits(network, params, head, states, summary)
    return [jax.tree.map(lambda leaf, number=number: leaf[number], stacked) for number in range(len(layers))]


def _messages(logits: Array, drafted: Array, kappa: int) -> SideMessages:
    excluded = jnp.stack([drafted, jnp.full_like(drafted, -1)])
    both = jax.vmap(lambda token: likely(logits, token, kappa))(excluded)
    return SideMessages(*(jax.tree.map(lambda leaf, number=number: leaf[number], both) for number in range(2)))


class RecordedSteps(NamedTuple):
    """Every step of greedy speculative decoding along a recording, n of them.

    Attributes:
        accepted: A: [n].
        next_token: correction or bonus: [n].
        positions: the γ+1 positions of each step, as indices into M·K: [n, γ+1].
    """

    accepted: np.ndarray
    next_token: np.ndarray
    positions: np.ndarray

    @property
    def accepted_length(self) -> float:
        """E[A]."""
        return float(np.mean(self.accepted))

    @property
    def acceptance_rate(self) -> float:
        """α: accepted tokens over tokens that were tested, those up to the first rejection."""
        rejected = np.sum(self.accepted < self.positions.shape[1] - 1)
        return float(np.sum(self.accepted) / (np.sum(self.accepted) + rejected))


def steps(recording: Recording, window: int) -> RecordedSteps:
    """Return the steps for windows of γ tokens.

    Raises:
        ValueError: no text is longer than a window, or a window is not read that deep.
    """
    if recording.depths > 1 and window >= recording.depths:
        raise ValueError(f"expected a window below {recording.depths}, the depths of the recording, got {window}")
    ends = step_ends(recording.agrees, window)
    if not ends:
        longest = max(map(len, recording.agrees))
        raise ValueError(f"expected more than {window} tokens after a prompt, got {longest}; continue them further")
    row, end, accepted = np.asarray(ends).T
    offsets = np.cumsum([0, *map(len, recording.agrees)])[row]
    positions = (offsets + end - accepted)[:, None] * recording.depths + np.arange(window + 1)
    return RecordedSteps(accepted, recording.text[offsets + end], positions)


def ready_length(recording: Recording, steps: RecordedSteps) -> float:
    """Return E[A] of windows that are drafted before the verdict by a draft which reads hidden states above the exit.

    They go on from the draft's own features along the window under verification.

    Raises:
        ValueError: a recording that is not deep enough.
    """
    lines, window = np.concatenate(recording.agrees), steps.positions.shape[1] - 1
    if recording.depths < 2 * window + 1:
        raise ValueError(f"expected a recording {2 * window + 1} tokens deep, got {recording.depths}; pass depths=")
    columns = steps.accepted[:, None] + 1 + np.arange(window)
    right = lines[steps.positions[:, :1] // recording.depths, columns]
    return float(np.mean(np.sum(np.cumprod(right, axis=1), axis=1)))


def hits(
    recording: Recording, steps: RecordedSteps, policy: Policy, num_candidates: int = 8, exit_layer: int | None = None
) -> np.ndarray:
    """Return for each step whether the policy rolls out its outcome: [n] bool; FF is the share of False.

    Args:
        recording: with at least as many candidates.
        steps: of the recording.
        policy: what is rolled out ahead.
        num_candidates: κ of the exit's message.
        exit_layer: ℓₑ, for a policy that uses the exit.

    Raises:
        ValueError: more candidates than were recorded, or an exit that was not recorded.
    """
    if policy.exit is not None and exit_layer not in recording.exits:
        raise ValueError(f"expected an exit out of {tuple(recording.exits)}, got {exit_layer}")
    own = _windows(recording.draft, steps.positions, policy.num_candidates) if policy.uses_own else None
    sent = _windows(recording.exits[exit_layer], steps.positions, num_candidates) if policy.exit else None  # type: ignore[index]
    accepted, next_token = steps.accepted.astype(np.int32), steps.next_token.astype(np.int32)
    return np.asarray(_hits(policy, own, sent, accepted, next_token))


def _windows(messages: SideMessages, positions: np.ndarray, kappa: int) -> SideMessages:
    """Return the first κ candidates of every step: masked [n, γ, κ] in the window, unmasked [n, 1, κ] after it."""
    most = messages.masked.tokens.shape[1]
    if kappa > most:
        raise ValueError(f"expected at most {most} candidates, as many as were recorded, got {kappa}")

    def at(message: Message, where: np.ndarray) -> Message:
        return Message(message.tokens[where, :kappa], message.scores[where, :kappa], message.drafted[where])

    return SideMessages(at(messages.masked, positions[:, :-1]), at(messages.unmasked, positions[:, -1:]))


@partial(jax.jit, static_argnums=0)
def _hits(
    policy: Policy, own: SideMessages | None, sent: SideMessages | None, accepted: Array, next_token: Array
) -> Array:
    """Return whether the outcome is a root: [n]. Rankings are called as in a step of ``jaxspec.mirror``."""
    drafts, exits = (None if side is None else _joined(side) for side in (own, sent))
    if policy.merge is not None and own is not None and drafts is not None and exits is not None:
        exits = policy.merge(exits, drafts if policy.ahead else open_ended(own.masked, _sizes(own)))
    earlier, hit = None, jnp.zeros(accepted.shape, bool)
    for ranking, message in ((policy.ahead, drafts), (policy.exit, exits)):
        if ranking is None or message is None:
            continue
        roots = ranking(message, earlier)
        earlier = roots if earlier is None else earlier
        is_root = (roots.accepted == accepted[:, None]) & (roots.tokens == next_token[:, None])
        hit |= jnp.any(is_root, axis=1)
    return hit


def _joined(side: SideMessages) -> Message:
    """Return the message of every step, behind its whole window the unmasked one."""
    return join(side.masked, side.unmasked, _sizes(side))


def _sizes(side: SideMessages) -> Array:
    """Return γ of every step: [n]."""
    steps, window, _ = side.masked.tokens.shape
    return jnp.full(steps, window)
