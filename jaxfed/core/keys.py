"""All randomness of jaxfed: which number is folded into which key.

A simulated run has one seed, and two keys of it:

    training key ─ round ─ client ─┬─ local step (0 … K−1)     loss function; augmentation folds AUGMENTATION in
                          │        ├─ OPTIMISER                random keys in the client optimiser's state
                          │        └─ UPLINK − n              transforms of the n-th `jaxfed.uplink`: number, leaf
                          ├─ ATTACK                            noise of attackers: leaf
                          └─ UPLINK                            noise of the server's aggregate: leaf
    batch key ──── round ─ client ─┬─ position                 shuffle of `Steps`
                                   ├─ epoch ─ position         shuffle of `Epochs`
                                   └─ STRAGGLER                step at which one of `Stragglers` stops

Cohorts are drawn on the host from (seed, round). A result depends on (seed, round, client, step), and on no slot,
chunk, mesh or resume point. In a deployment, noise for privacy comes from `entropy_key` instead.
"""

import secrets

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfed.core.types import Key

UPLINK = 2**32 - 1
"""Folded into a client's key for its transforms, and into the round's key for the server's noise.

No step and no client has this number. A second `uplink` around the first uses the number below, and so on.
"""

OPTIMISER = 2**32 - 2
"""Folded into a client's key for its optimiser; no local step has this number."""

STRAGGLER = 2**32 - 3
"""Folded into a client's batch key for the step at which it stops; no position and no epoch has this number."""

ATTACK = 2**32 - 4
"""Folded into the round's key for what attackers draw; no client has this number."""

AUGMENTATION = 0x61756721
"""Folded into a step's key for the augmentation of its batch."""


def training_key(seed: int) -> Key:
    """Return the run's key, from which the step derives those of rounds, clients and local steps."""
    return jax.random.split(jax.random.key(seed))[0]


def batch_key(seed: int) -> Key:
    """Return the run's key of batches."""
    return jax.random.split(jax.random.key(seed))[1]


def round_key(run: Key, round_number: Array) -> Key:
    """Return the key of one round, from a run's training or batch key."""
    return jax.random.fold_in(run, round_number)


def client_key(of_round: Key, client: Array) -> Key:
    """Return one client's key of a round, by its id []."""
    return jax.random.fold_in(of_round, client)


def client_keys(of_round: Key, ids: Array) -> Key:
    """Return one key [C] for each client, by its id [C]: a client's randomness depends on no slot, chunk or device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(of_round, ids)


def straggler_key(of_client: Key) -> Key:
    """Return the key that decides at which step a client stops, from its batch key of the round."""
    return jax.random.fold_in(of_client, STRAGGLER)


def step_key(of_client: Key, step: Array) -> Key:
    """Return the key of one local step, which the loss function takes."""
    return jax.random.fold_in(of_client, step)


def augmentation_key(of_step: Key) -> Key:
    """Return the key by which a step's batch is augmented."""
    return jax.random.fold_in(of_step, AUGMENTATION)


def optimiser_words(of_client: Key) -> Array:
    """Return two words uint32 [2] that `fold_words` folds into every random key of a client optimiser's state."""
    return jax.random.bits(jax.random.fold_in(of_client, OPTIMISER), (2,))


def fold_words(key: Key, words: Array) -> Key:
    """Fold two words into a key."""
    return jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1])


def transform_key(of_client: Key, uplinks: int) -> Key:
    """Return the key of a client's transforms, around an algorithm that already has `uplinks` groups of them."""
    return jax.random.fold_in(of_client, UPLINK - uplinks)


def noise_key(of_round: Key) -> Key:
    """Return the key of the noise that a server adds in a round."""
    return jax.random.fold_in(of_round, UPLINK)


def attack_key(of_round: Key) -> Key:
    """Return the key of what the attackers of a round draw."""
    return jax.random.fold_in(of_round, ATTACK)


def numbered_key(key: Key, number: int | Array) -> Key:
    """Return the key of one of several numbered things: transforms, augmentations, leaves."""
    return jax.random.fold_in(key, number)


def numbered_keys(key: Key, count: int) -> Key:
    """Return the keys [count] of several numbered things: epochs, positions of a shuffle."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count, dtype=jnp.int32))


def entropy_key() -> Key:
    """Return a key from the operating system's entropy, for noise that must stay secret."""
    like = np.asarray(jax.random.key_data(jax.random.key(0)))
    bits = np.frombuffer(secrets.token_bytes(like.nbytes), like.dtype).reshape(like.shape)
    return jax.random.wrap_key_data(jnp.asarray(bits))


def round_generator(seed: int, round_number: int) -> np.random.Generator:
    """Return the host generator that draws the cohort of a round."""
    return np.random.default_rng([seed, round_number])
