"""From logits to tokens: filters, penalties, and noise that belongs to a place in a sequence and to nothing else.

A token is drawn by Gumbel-max: y = argmax_v (z_v + g_v), g the noise of (seed, position) indexed by token id. So what
is drawn depends on no neighbour, no packing, no mesh; and a draft that adds the same noise to its own logits mostly
draws the same token (coupling without communication, arXiv 2408.07978).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array

#: Streams of noise at one position: the token's own, the acceptance test, the residual draw, the draft's draw.
TOKEN, TEST, RESIDUAL, DRAFT = range(4)
#: In place of a drafted token whose scores are not numbers; no target chooses it, so it is never accepted.
INVALID = -2


class SamplingArrays(NamedTuple):
    """How each sequence's tokens are drawn; every field is [B].

    Attributes:
        seed: uint32; with the position, the key of the noise.
        temperature: logits are divided by it; 0: the most likely token, nothing drawn.
        top_k: the k most likely tokens; 0: all.
        top_p: the fewest tokens that hold this mass; 1: all.
        min_p: tokens of at least this share of the most likely one's probability; 0: all.
        repetition_penalty: logits of tokens seen before are divided (if positive) or multiplied by it; 1: none.
    """

    seed: Array
    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array


def greedy(logits: Array) -> Array:
    """The most likely token of logits [V, B, T]: [B, T] int32; the lowest id among equals."""
    return jnp.argmax(logits, axis=0).astype(jnp.int32)


def guess(scores: Array) -> Array:
    """A draft's most likely token, [B, T] int32, of scores [V, B, T]; ``INVALID`` where they hold NaN or infinity."""
    return jnp.where(are_numbers(scores), greedy(scores), INVALID)


def are_numbers(scores: Array) -> Array:
    """Whether scores [V, B, T] can be compared: [B, T] bool. Single tokens may be ruled out by −∞, not all."""
    return jnp.isfinite(jnp.max(scores, axis=0))


def keys(seed: Array, positions: Array, stream: int) -> Array:
    """The key of every place: seed [B], positions [B, T] below 2³⁰ → typed keys [B, T].

    Threefry's key is two words; seed and place fill them as they are, so that no key is derived from another. It
    scatters keys that differ in one bit as well as any (Salmon et al., SC 2011), and jax's defaults change nothing.
    """
    place = (positions.astype(jnp.uint32) << 2) | jnp.uint32(stream)
    words = jnp.stack([jnp.broadcast_to(seed[:, None].astype(jnp.uint32), place.shape), place], axis=-1)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def gumbel(seed: Array, positions: Array, count: int, stream: int = TOKEN) -> Array:
    """Gumbel noise of every place, indexed by token id: [count, B, T]."""
    draw = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (count,))))
    return jnp.moveaxis(draw(keys(seed, positions, stream)), -1, 0)


def uniform(seed: Array, positions: Array) -> Array:
    """One number in [0, 1) for the acceptance test at every place: [B, T]."""
    return jax.vmap(jax.vmap(jax.random.uniform))(keys(seed, positions, TEST))


def penalised(logits: Array, penalty: Array, seen: Array | None) -> Array:
    """Logits [V, B, T] less those of tokens ``seen`` [B, T or 1, V] (CTRL, arXiv 1909.05858, §4.1)."""
    if seen is None:
        return logits
    factor = penalty[None, :, None]
    return jnp.where(jnp.moveaxis(seen, -1, 0), jnp.where(logits > 0, logits / factor, logits * factor), logits)


def filtered(logits: Array, sampling: SamplingArrays) -> Array:
    """Logits [V, B, T] over the temperature, −∞ where top-k, top-p or min-p (in this order) leave a token out.

    Tokens that tie with the last one kept are kept. At temperature 0 logits are taken as they are.
    """
    s = sampling
    scaled = logits / jnp.where(s.temperature > 0, s.temperature, 1.0)[None, :, None]
    active = (s.temperature > 0) & ((s.top_k > 0) | (s.top_p < 1) | (s.min_p > 0))
    return jax.lax.cond(jnp.any(active), lambda z: _cut(z, s), lambda z: z, scaled)


def _cut(scaled: Array, sampling: SamplingArrays) -> Array:
    k, top_p, min_p = (field[:, None] for field in (sampling.top_k, sampling.top_p, sampling.min_p))
    # A sum may round to 1 before the last token is in it, so what filters nothing must ask for what is never reached.
    k, top_p = jnp.where(k > 0, k, scaled.shape[0]), jnp.where(top_p < 1, top_p, jnp.inf)
    scaled = _keep(scaled, lambda kept: jnp.sum(kept, axis=0, dtype=jnp.int32) >= k)
    mass = jax.nn.softmax(scaled, axis=0)
    scaled = _keep(scaled, lambda kept: jnp.sum(jnp.where(kept, mass, 0.0), axis=0) >= top_p)
    least = jnp.max(scaled, axis=0, keepdims=True) + jnp.log(min_p)[None]
    return jnp.where(scaled >= least, scaled, -jnp.inf)


def _keep(values: Array, enough: Callable[[Array], Array]) -> Array:
    """Keeps the largest values [V, …], as few as are ``enough``; all where even all are not.

    The least value kept is found bit by bit, so nothing is sorted and a vocabulary that is spread over devices stays
    where it is.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)  # one zero, not two
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def step(number: Array, least: Array) -> Array:
        larger = least | jnp.left_shift(jnp.uint32(1), jnp.uint32(31) - number.astype(jnp.uint32))
        return jnp.where(enough(order >= larger[None]), larger, least)

    least = jax.lax.fori_loop(0, 32, step, jnp.zeros(values.shape[1:], jnp.uint32))
    return jnp.where(order >= least[None], values, -jnp.inf)


def perturbed(logits: Array, sampling: SamplingArrays | None, positions: Array, seen: Array | None = None) -> Array:
    """What the token at each place is the argmax of: filtered logits plus its noise; at temperature 0 the logits.

    Args:
        logits: [V, B, T].
        sampling: of each sequence; None: nothing is drawn or penalised, and no code for it is compiled.
        positions: of the tokens to be drawn: [B, T].
        seen: tokens that a penalty applies to: [B, T or 1, V].
    """
    if sampling is None:
        return logits
    logits = penalised(logits, sampling.repetition_penalty, seen)
    warm = sampling.temperature > 0

    def noisy(values: Array) -> Array:
        drawn = filtered(values, sampling) + gumbel(sampling.seed, positions, values.shape[0])
        return jnp.where(warm[None, :, None], drawn, values)

    return jax.lax.cond(jnp.any(warm), noisy, lambda values: values, logits)


def draw(logits: Array, sampling: SamplingArrays | None, positions: Array, seen: Array | None = None) -> Array:
    """The token at each place: [B, T] int32; the arguments are those of ``perturbed``."""
    return greedy(perturbed(logits, sampling, positions, seen))


def log_probability(logits: Array, tokens: Array) -> Array:
    """log softmax(logits [V, B, T]) of tokens [B, T]: the model's own law, unfiltered, at temperature 1."""
    chosen = jnp.arange(logits.shape[0])[:, None, None] == tokens[None]
    return jnp.sum(jnp.where(chosen, logits, 0.0), axis=0) - jax.nn.logsumexp(logits, axis=0)


def mark_seen(seen: Array | None, tokens: Array, count: Array) -> Array | None:
    """Tokens ``seen`` [B, V] and the first ``count`` [B] of ``tokens`` [B, T]."""
    if seen is None:
        return None
    new = jnp.arange(tokens.shape[1])[None] < count[:, None]
    return seen | jnp.any(_is(tokens, seen.shape[-1]) & new[..., None], axis=1)


def seen_along(seen: Array | None, window: Array) -> Array | None:
    """What has been seen before each of γ+1 places, if all drafted tokens [B, γ] come true: [B, γ+1, V]."""
    if seen is None:
        return None
    drafted = jax.lax.associative_scan(jnp.logical_or, _is(window, seen.shape[-1]), axis=1)
    return seen[:, None] | jnp.pad(drafted, ((0, 0), (1, 0), (0, 0)))


def _is(tokens: Array, vocabulary: int) -> Array:
    return tokens[..., None] == jnp.arange(vocabulary)[None, None]
