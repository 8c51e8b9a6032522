"""Models as a user may define them: plain functions without Flax, and a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen.initializers import normal

from jaxspec import DecoderConfig, Model, Network
from tests.support.jaxspec.models import VOCAB

SIZE, LAYERS = 8, 2
#: One head of 8 features; ``hidden`` is not used.
ATTENTION = DecoderConfig(VOCAB, SIZE, LAYERS, 1, 1, SIZE, SIZE)
TABLE = DecoderConfig(VOCAB, VOCAB, 1, 1, 1, 2, 1)


def replicate(params):
    return jax.tree.map(lambda _: jax.sharding.PartitionSpec(), params)


def bigram(seed=0):
    """A table of logits: no attention and no cache. Most tokens are followed by the next higher one."""
    table = 2.0 * jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB)) + 5.0 * jnp.roll(jnp.eye(VOCAB), 1, axis=1)
    return Model(
        Network(
            TABLE,
            embed=lambda params, tokens: jnp.moveaxis(params[tokens], -1, 0),
            blocks=lambda params, x, positions, cache, attend, layers: (x, cache),
            logits=lambda params, x: x,
            partition=replicate,
        ),
        table,
    )


def plain_attention(seed=0):
    """Two layers of single-head attention with learned positions, as plain functions of a dictionary."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "tokens": 1.5 * jax.random.normal(keys[0], (VOCAB, SIZE)),
        "positions": 0.7 * jax.random.normal(keys[1], (64, SIZE)),
        "head": jax.random.normal(keys[3], (VOCAB, SIZE)),
        "qkvo": 0.6 * jax.random.normal(keys[2], (LAYERS, 4, SIZE, SIZE)),
    }

    def embed(params, tokens):
        return jnp.moveaxis(params["tokens"][tokens], -1, 0)

    def blocks(params, x, positions, cache, attend, layers):
        cache = list(cache)
        encoding = jnp.moveaxis(params["positions"][positions], -1, 0)
        for index in layers:
            query, key, value = jnp.einsum("ned,dbt->nbte", params["qkvo"][index, :3], x + encoding)
            context, cache[index] = attend(query[:, None, None], key[:, None], value[:, None], cache[index])
            x = x + jnp.tanh(jnp.einsum("de,bte->dbt", params["qkvo"][index, 3], context[:, 0, 0]))
        return x, tuple(cache)

    def logits(params, x):
        return jnp.einsum("vd,dbt->vbt", params["head"], x)

    return Model(Network(ATTENTION, embed, blocks, logits, replicate), params)


class LinenDecoder(linen.Module):
    """The same idea as a Linen module: dense projections, token-major inside, feature-major at its borders."""

    def setup(self):
        self.tokens = linen.Embed(VOCAB, SIZE, embedding_init=normal(1.5))
        self.places = linen.Embed(64, SIZE, embedding_init=normal(0.7))
        self.projections = [linen.Dense(3 * SIZE, kernel_init=normal(0.6)) for _ in range(LAYERS)]
        self.head = linen.Dense(VOCAB)
        self.outputs = [linen.Dense(SIZE, kernel_init=normal(0.6)) for _ in range(LAYERS)]

    def embed(self, tokens):
        return jnp.moveaxis(self.tokens(tokens), -1, 0)

    def blocks(self, x, positions, cache, attend, layers):
        x, cache = jnp.moveaxis(x, 0, -1), list(cache)
        for index in layers:
            query, key, value = jnp.split(self.projections[index](x + self.places(positions)), 3, axis=-1)
            context, cache[index] = attend(query[:, None, None], key[:, None], value[:, None], cache[index])
            x = x + jnp.tanh(self.outputs[index](context[:, 0, 0]))
        return jnp.moveaxis(x, -1, 0), tuple(cache)

    def logits(self, x):
        return jnp.moveaxis(self.head(jnp.moveaxis(x, 0, -1)), -1, 0)

    def everything(self, tokens, attend):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        x, _ = self.blocks(self.embed(tokens), positions, (None,) * LAYERS, attend, range(LAYERS))
        return self.logits(x)


def linen_attention(seed=0):
    """The Linen module as a model: its parameters stay the dictionary that ``init`` returned."""
    module = LinenDecoder()
    example = jnp.zeros((1, 2), jnp.int32)
    params = module.init(jax.random.key(seed), example, lambda q, k, v, rows: (q, rows), method="everything")

    def method(name):
        return lambda params, *args: module.apply(params, *args, method=name)

    return Model(Network(ATTENTION, method("embed"), method("blocks"), method("logits"), replicate), params)
