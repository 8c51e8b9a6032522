"""A small causal transformer over characters or byte pairs: every position predicts the next token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


class CausalAttention(nnx.Module):
    """Causal self-attention of `heads` heads: softmax(q·kᵀ/√d)·v over the positions up to the query's."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.project = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.merge = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[B, T, width] of x [B, T, width]."""
        batch, length, width = x.shape
        query, key, value = jnp.moveaxis(self.project(x).reshape(batch, length, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * (width // self.heads) ** -0.5, key)
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(x.dtype).min), axis=-1)
        return self.merge(jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape))


class TransformerLayer(nnx.Module):
    """Pre-norm residual layer: attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = CausalAttention(width, heads, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[B, T, width] of x [B, T, width]."""
        x = x + self.attention(self.norms[0](x))
        return x + self.narrow(jax.nn.relu(self.widen(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """Token and position embeddings, `depth` layers, and logits from the token embedding transposed.

    Attributes:
        tokens: one vector of `width` numbers per token of the vocabulary.
        places: the position embedding, one vector for each of `context` positions.
        layers: the layers.
        norm: normalises before the logits.
    """

    def __init__(
        self, vocabulary: int, context: int, *, width: int = 64, depth: int = 2, heads: int = 4, rngs: nnx.Rngs
    ) -> None:
        if width % heads:
            raise ValueError(f"expected a width that {heads} heads divide, got {width}; change one of them")
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(context, width, rngs=rngs)
        self.layers = nnx.List([TransformerLayer(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits [B, T, vocabulary] of tokens int [B, T], T ≤ context."""
        length, context = x.shape[1], self.places.num_embeddings
        if length > context:
            raise ValueError(f"expected at most {context} tokens, got {length}; build the model with a larger context")
        hidden = self.tokens(x) + self.places(jnp.arange(length))[None]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.tokens.attend(self.norm(hidden))
