"""The suite ``long-caches`` of decode.py: a pass with a cache of 8,192 rows, of which a text fills some.

A line is of a model, T tokens and a text of so many tokens: milliseconds of a pass that reads the rows in use (our
``READ``), and of one that reads all rows; ``ratio`` = all / in use. Both are timed in turns, medians. ``prompt`` lines
are of whole prompts of P tokens, in chunks of 256.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from machine import in_turns

import jaxspec
from jaxspec.models import attention
from jaxspec.models.attention import fill, init_cache
from jaxspec.verify.target import Progress, Target, choose, prefix_pass

ROWS, TOKENS, LENGTHS = 8192, (1, 8), (128, 512, 1024, 2048, 4096, 8000)
SIDES = {"in_use_ms": attention.READ, "all_rows_ms": ROWS}


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield a line for every size, number of tokens and length."""
    from decode import config_of

    for size in options.sizes:
        model = jaxspec.decoder(config_of(size), jax.random.key(0))
        for tokens in TOKENS:
            passes = {name: one_pass(model, tokens, read) for name, read in SIDES.items()}
            for length in LENGTHS:
                runs = {name: (lambda run=run, length=length: run(length)) for name, run in passes.items()}
                yield {"kind": "pass", "size": size, "tokens": tokens, "length": length} | compared(
                    runs, options.rounds
                )
            del passes
        for length in LENGTHS[1:-1]:
            runs = {name: prompt(model, length, read) for name, read in SIDES.items()}
            yield {"kind": "prompt", "size": size, "tokens": length, "length": length} | compared(runs, 3)


def compared(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Return the median milliseconds of each, timed in turns, and their ratio."""
    medians = {name: 1e3 * seconds for name, seconds in in_turns(runs, rounds).items()}
    some, every = medians.values()
    return {name: round(value, 3) for name, value in medians.items()} | {"ratio": round(every / some, 3)}


def one_pass(model: jaxspec.Model, tokens: int, read: int) -> Callable[[int], Any]:
    """Return a call of a compiled pass over T tokens behind a text of given length; its cache is donated."""
    network, params = model.network, model.params
    window, target = jnp.zeros((1, tokens - 1), jnp.int32), Target(network)

    def run(params: Any, cache: Any, position: Any) -> tuple[Any, Any]:
        progress = Progress(jnp.ones(1, jnp.int32), position, position + 64)
        x, cache, _ = prefix_pass(target, params, cache, progress, window, network.config.num_layers)
        return choose(target, params, progress, x, window), cache

    caches = [init_cache(network.config, 1, ROWS)]
    place = jnp.zeros(1, jnp.int32)
    with mock.patch.object(attention, "READ", read):
        compiled = jax.jit(run, donate_argnums=1).lower(params, caches[0], place).compile()

    def call(length: int) -> None:
        choices, caches[0] = compiled(params, caches[0], jnp.full(1, length, jnp.int32))
        jax.block_until_ready(choices)

    return call


def prompt(model: jaxspec.Model, length: int, read: int) -> Callable[[], Any]:
    """Return a call that fills a cache with a prompt."""
    tokens = jnp.zeros((1, length), jnp.int32)
    with mock.patch.object(attention, "READ", read):
        made = jax.jit(lambda params, tokens: fill(model.network, params, tokens, ROWS)[0])
        compiled = made.lower(model.params, tokens).compile()
    return lambda: jax.block_until_ready(compiled(model.params, tokens))
