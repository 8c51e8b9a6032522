"""From logits to tokens: repetition penalty, filters, and noise that depends on the seed and the position alone.

A token is drawn by Gumbel-max: y = argmax_v (z_v + g_v), g the noise of (seed, position) indexed by token id. A draft
that adds the same noise to its own logits mostly draws the same token (coupling without communication, arXiv
2408.07978).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array
from jaxspec.verify.keys import gumbel
from jaxspec.verify.seen import Seen

#: In place of a drafted token whose scores are not numbers; no target chooses it, so it is never accepted.
INVALID = -2
#: In place of a token that was not drafted.
NOTHING = -1


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
    """Return the most likely token of logits [V, B, T]: [B, T] int32; the lowest id among equals."""
    return jnp.argmax(logits, axis=0).astype(jnp.int32)


def guess(scores: Array) -> Array:
    """Return the best token [B, T] int32 of a draft's scores [V, B, T]; ``INVALID`` where these are not numbers."""
    return jnp.where(are_numbers(scores), greedy(scores), INVALID)


def are_numbers(scores: Array) -> Array:
    """Return whether scores [V, B, T] can be compared: [B, T] bool. Single tokens may be ruled out by −∞, not all."""
    return jnp.isfinite(jnp.max(scores, axis=0))


def penalised(logits: Array, penalty: Array, seen: Seen) -> Array:
    """Lower logits [V, B, T] for the tokens of ``seen`` [B, T or 1, V] (CTRL, arXiv 1909.05858, §4.1)."""
    if seen.marks is None:
        return logits
    factor, marks = penalty[None, :, None], jnp.moveaxis(seen.marks, -1, 0)
    return jnp.where(marks, jnp.where(logits > 0, logits / factor, logits * factor), logits)


def filtered(logits: Array, sampling: SamplingArrays) -> Array:
    """Divide logits [V, B, T] by the temperature; −∞ where top-k, top-p or min-p (in this order) leave a token out.

    Tokens that tie with the last one kept are kept. At temperature 0 the logits are not divided, and callers ignore the
    result: filters may or may not be applied.
    """
    s = sampling
    scaled = logits / jnp.where(s.temperature > 0, s.temperature, 1.0)[None, :, None]
    active = (s.temperature > 0) & ((s.top_k > 0) | (s.top_p < 1) | (s.min_p > 0))
    return jax.lax.cond(jnp.any(active), lambda z: _cut(z, s), lambda z: z, scaled)


def _cut(scaled: Array, sampling: SamplingArrays) -> Array:
    k, top_p, min_p = (field[:, None] for field in (sampling.top_k, sampling.top_p, sampling.min_p))
    # A sum may round to 1 before the last token is in it, so a filter that is off needs a bound that is never reached.
    k, top_p = jnp.where(k > 0, k, scaled.shape[0]), jnp.where(top_p < 1, top_p, jnp.inf)
    scaled = _keep(scaled, lambda kept: jnp.sum(kept, axis=0, dtype=jnp.int32) >= k)
    mass = jax.nn.softmax(scaled, axis=0)
    scaled = _keep(scaled, lambda kept: jnp.sum(jnp.where(kept, mass, 0.0), axis=0) >= top_p)
    least = jnp.max(scaled, axis=0, keepdims=True) + jnp.log(min_p)[None]
    return jnp.where(scaled >= least, scaled, -jnp.inf)


def _keep(values: Array, enough: Callable[[Array], Array]) -> Array:
    """Keep the largest values [V, …], as few as are ``enough``; all where even all are not.

    The least value kept is found by a search over its bits, so nothing is sorted and a vocabulary that is split over
    devices is not gathered. A TPU finds four bits at a time: a sum over devices costs it more than fifteen comparisons.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)  # one zero, not two
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    one_bit, four_bits = (partial(least_kept, enough=enough, bits=count) for count in (1, 4))
    least = jax.lax.platform_dependent(order, tpu=four_bits, default=one_bit)
    return jnp.where(order >= least[None], values, -jnp.inf)


def least_kept(order: Array, enough: Callable[[Array], Array], bits: int) -> Array:
    """Return the largest threshold t for which ``enough(order >= t)``, 0 where none is: [V, …] → […] uint32.

    Args:
        order: values as numbers of 32 bits.
        enough: of a mask [V, …], whether it holds enough: […]; true of every larger mask, too.
        bits: found at a time; a divisor of 32.
    """
    choices = jnp.arange(1, 1 << bits, dtype=jnp.uint32)

    def step(number: Any, least: Array) -> Array:
        place = jnp.uint32(32 - bits) - jnp.uint32(bits) * jnp.asarray(number, jnp.uint32)
        found = jax.vmap(lambda choice: enough(order >= (least | jnp.left_shift(choice, place))[None]))(choices)
        return least | jnp.left_shift(jnp.sum(found, axis=0, dtype=jnp.uint32), place)

    return jax.lax.fori_loop(0, 32 // bits, step, jnp.zeros(order.shape[1:], jnp.uint32), unroll=bits > 1)


def perturbed(
    logits: Array, sampling: SamplingArrays | None, positions: Array, seen: Seen = Seen(), depth: Any = None
) -> Array:
    """Return filtered logits plus noise, [V, B, T], whose argmax is the token; at temperature 0 the (penalised) logits.

    Args:
        logits: [V, B, T].
        sampling: of each sequence; None: greedy without a penalty, and no code for the rest is compiled.
        positions: of the tokens to be drawn: [B, T].
        seen: tokens that the penalty applies to: marks [B, T or 1, V].
        depth: which of ``positions`` [B, D+1] each column has, [b, T], if several share one; default: its own.
    """
    if sampling is None:
        return logits
    logits = penalised(logits, sampling.repetition_penalty, seen)
    warm = sampling.temperature > 0

    def noisy(values: Array) -> Array:
        noise = gumbel(sampling.seed, positions, values.shape[0])
        if depth is not None:
            noise = jnp.take_along_axis(noise, jnp.broadcast_to(depth, (len(positions), depth.shape[1]))[None], axis=2)
        drawn = filtered(values, sampling) + noise
        return jnp.where(warm[None, :, None], drawn, values)

    return jax.lax.cond(jnp.any(warm), noisy, lambda values: values, logits)


def draw(logits: Array, sampling: SamplingArrays | None, positions: Array, seen: Seen = Seen()) -> Array:
    """Draw the token at each position: [B, T] int32; the arguments are those of ``perturbed``."""
    return greedy(perturbed(logits, sampling, positions, seen))


def log_probability(logits: Array, tokens: Array) -> Array:
    """Return log softmax(logits [V, B, T]) of tokens [B, T]: the model's own, unfiltered, at temperature 1."""
    chosen = jnp.arange(logits.shape[0])[:, None, None] == tokens[None]
    return jnp.sum(jnp.where(chosen, logits, 0.0), axis=0) - jax.nn.logsumexp(logits, axis=0)
