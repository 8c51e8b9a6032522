"""Drafts with another number of embedding rows than the target: tokenizers are compared, logits padded or cut."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp

from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text import Text

#: Spelling of reserved, unused and control tokens.
RESERVED = re.compile(r"[<\[].*[>\]]", re.DOTALL)


def fit_vocabulary(draft: Model, size: int) -> Model:
    """Resize a draft's logits to ``size`` tokens: pad with −∞ at the end, or cut.

    Published models with one tokenizer may have embeddings of different sizes, because rows are added for divisibility.
    The result never proposes a token that it or the target does not have; decoding stays lossless.

    Args:
        draft: parameters and text are unchanged; tokens that it does not have are embedded as its last token.
        size: V of the target.

    Returns:
        A model for decoding. Saving it saves the original with its own rows.

    Raises:
        ValueError: ``size`` < 1.
    """
    if size < 1:
        raise ValueError(f"expected a vocabulary of at least one token, got {size}")
    draft = unfitted(draft)
    same = size == draft.network.config.vocab_size
    return draft if same else draft._replace(network=_fitted(draft.network, size))


def unfitted(model: Model) -> Model:
    """Return the model with the vocabulary of its parameters."""
    return model._replace(network=model.network.source or model.network)


@cache
def _fitted(network: Network, size: int) -> Network:
    """Return the network with another vocabulary size; cached, so that compiled programs are reused."""
    own = network.config.vocab_size

    def embed(params: Params, tokens: Array) -> Array:
        return network.embed(params, jnp.minimum(tokens, own - 1))

    def logits(params: Params, x: Array) -> Array:
        own_logits = network.logits(params, x)[:size]
        padding = [(0, max(0, size - own)), *[(0, 0)] * (own_logits.ndim - 1)]
        return jnp.pad(own_logits, padding, constant_values=-jnp.inf)

    with_config: Callable[..., Any] | None = None
    if network.with_config is not None:
        make = network.with_config
        with_config = lambda config: _fitted(make(replace(config, vocab_size=own)), size)  # noqa: E731
    config = replace(network.config, vocab_size=size)
    return replace(network, config=config, embed=embed, logits=logits, with_config=with_config, source=network)


def check_tokenizers(target: Text, draft: Text, sizes: tuple[int, int]) -> None:
    """Reject drafts with another tokenizer, whose tokens would hardly ever be accepted.

    Args:
        target: text of the target.
        draft: text of the draft.
        sizes: rows of their embeddings.

    Raises:
        ValueError: a token differs or is missing in one of the two, and is not a reserved or control token.
    """
    one, other = target.piece, draft.piece
    if one is other or one is None or other is None:
        return
    for token in range(max(sizes)):
        pieces = one(token), other(token)
        if pieces[0] != pieces[1] and not any(piece and RESERVED.fullmatch(piece) for piece in pieces):
            raise ValueError(
                f"expected target and draft over one vocabulary, got {pieces[0]!r} and {pieces[1]!r} for token "
                f"{token}; use a draft trained with the target's tokenizer, or draft._replace(text=None) if it was"
            )


def check_language_model(draft: Any, use: str) -> None:
    """Check that a draft is a language model; ``use`` says what for.

    Raises:
        ValueError: a draft of another kind.
    """
    if not isinstance(draft, Model):
        kind = getattr(draft, "drafter", draft)
        raise ValueError(
            f"expected a language model as a draft {use}, got a draft of another kind ({type(kind).__name__}); pass a "
            "smaller model with the target's tokenizer"
        )


def fitted(target: Model, draft: Model) -> Model:
    """Resize the draft to the target's vocabulary size, if both have the same tokenizer.

    Raises:
        ValueError: different tokenizers, or embeddings of different sizes without two tokenizers to compare.
    """
    sizes = target.network.config.vocab_size, draft.network.config.vocab_size
    pieces = [model.text.piece if model.text else None for model in (target, draft)]
    if sizes[0] != sizes[1] and None in pieces:
        raise ValueError(
            f"expected target and draft over one vocabulary, got {sizes[0]} and {sizes[1]} tokens and no two "
            "tokenizers to compare; if both have the same one, pass "
            f"jaxspec.fit_vocabulary(draft, {sizes[0]}), else use a draft trained with the target's tokenizer"
        )
    if target.text and draft.text:
        check_tokenizers(target.text, draft.text, sizes)
    return draft if sizes[0] == sizes[1] else fit_vocabulary(draft, sizes[0])


def check_trainable(target: Model, draft: Model) -> None:
    """Check that a draft that is trained on the target has an embedding row for each of its tokens.

    Raises:
        ValueError: different tokenizers, embeddings of different sizes, or a draft of another kind.
    """
    check_language_model(draft, "to train")
    sizes = target.network.config.vocab_size, unfitted(draft).network.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"expected a draft with the target's {sizes[0]} rows in its embedding to train, got {sizes[1]}; if both "
            f"have one tokenizer, resize the draft (resize_token_embeddings({sizes[0]}) of transformers), else use a "
            "draft trained with the target's tokenizer"
        )
    if target.text and draft.text:
        check_tokenizers(target.text, draft.text, sizes)
