"""What a run and its checkpoints must share besides arguments: what is computed, and the samples."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.core.protocol import ClientMessage, ClientUpdate, Cohort, FederatedAlgorithm, Server
from jaxfed.core.samplers import Sampler
from jaxfed.core.stateful import evaluate
from jaxfed.core.types import Key
from jaxfed.data.batches import ClientData
from jaxfed.data.batching import Batching
from jaxfed.data.streams import HostSamples
from jaxfed.layout import plans
from jaxfed.run import _fingerprints as fingerprints

PACKAGES = ("jax", "flax", "optax", "jaxfed-jaxspec")
"""Packages whose versions change what a function is traced to."""

MADE_WITH = "made with"
TRACED = ("loss function", "first row", "client update", "server update", "aggregate")
"""Digests of traced functions: comparable only where `MADE_WITH` is equal."""

OF_CLIENT = (MADE_WITH, "learning rates", "loss function", "first row", "client update")
"""Names in the result of `of_client`."""

READ_AT_ONCE = 64 << 20
"""Bytes of samples on the host whose digests are computed together: they need not fit into memory."""

RATES = (0, *(2**power for power in range(14)))
"""Rounds whose learning rates are compared as numbers."""

Identity = Mapping[str, Any]
"""Digests and numbers by name, as JSON."""

Sample = Mapping[str, jax.ShapeDtypeStruct]


def of_client(algorithm: FederatedAlgorithm, server: Server, sample: Sample, batch_size: int) -> dict[str, Any]:
    """Return what a client computes: learning rates, and digests of the traced loss function and client update.

    Args:
        algorithm: of the run.
        server: arrays, or their shapes and dtypes.
        sample: shape and dtype of one sample by name.
        batch_size: B.
    """
    member = _member(algorithm, server, sample, batch_size)
    digests: dict[str, Any] = {MADE_WITH: made_with()}
    if (parts := algorithm.parts) is not None:
        rate = jax.jit(parts.learning_rate)
        digests["learning rates"] = [float(f"{float(rate(jnp.int32(number))):.7g}") for number in RATES]
        if parts.loss_fn is not None:
            batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), member.batches)
            loss = partial(evaluate, parts.loss_fn)
            digests["loss function"] = fingerprints.of_function(loss, server.params, server.model_state, batch, _key())
    rows = fingerprints.of_function(algorithm.init_client, server.params, server.model_state)
    update = fingerprints.of_function(lambda *arguments: algorithm.client_update(*arguments), server, member, _key())
    return {**digests, "first row": rows, "client update": update}


def of_server(
    algorithm: FederatedAlgorithm, server: Server, sample: Sample, batch_size: int, slots: int
) -> dict[str, Any]:
    """Return what the server computes of `slots` messages: digests of the traced aggregate and server update."""
    member = _member(algorithm, server, sample, batch_size)
    update = jax.eval_shape(lambda *arguments: algorithm.client_update(*arguments), server, member, _key())
    count = jax.ShapeDtypeStruct((), jnp.int32)
    moved = fingerprints.of_function(algorithm.server_update, server, update.message, count)
    digests: dict[str, Any] = {"server update": moved}
    if algorithm.parts is None:
        return digests
    aggregate = algorithm.parts.aggregate
    every = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype), (member.rows, update))

    def combined(ids: Any, rows: Any, updates: ClientUpdate, key: Key) -> tuple[ClientMessage, Any]:
        cohort = Cohort(ids, rows, {"update": updates})  # type: ignore[dict-item]
        run = partial(plans.gathered, plans.vmap()) if aggregate.gathers else plans.vmap()
        result = run(lambda each, key: each.batches["update"], cohort, key)  # type: ignore[arg-type, return-value]
        return aggregate.combine(result, cohort, key)

    ids = jax.ShapeDtypeStruct((slots,), jnp.int32)
    return {**digests, "aggregate": fingerprints.of_function(combined, ids, *every, _key())}


def of_run(
    algorithm: FederatedAlgorithm, server: Server, data: ClientData, batching: Batching, slots: int
) -> dict[str, Any]:
    """Return what a simulated run computes, and a digest of every array of samples."""
    sample = {name: jax.ShapeDtypeStruct(each.shape[1:], each.dtype) for name, each in data.arrays.items()}
    size = batch_size_of(batching)
    traced = of_client(algorithm, server, sample, size) | of_server(algorithm, server, sample, size, slots)
    return traced | of_samples(data)


def of_samples(data: ClientData) -> dict[str, str]:
    """Return a digest of every array, sample by sample in the order of the clients, whatever the layout."""
    lengths, offsets = np.asarray(data.lengths, np.int64), np.asarray(data.offsets, np.int64)
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(lengths.sum()) + np.repeat(offsets - starts, lengths)
    positions = positions if data.order is None else np.asarray(data.order)[positions]
    digests = {}
    for name, array in data.arrays.items():
        parts = array.in_parts(READ_AT_ONCE) if isinstance(array, HostSamples) else [array]
        hashes = np.concatenate([fingerprints.of_rows(jnp.asarray(part)) for part in parts])
        rows = fingerprints.of_bytes(hashes[positions])
        digests[f"data {name!r}"] = f"{array.dtype}{list(array.shape[1:])} {rows}"
    return digests


def of_cohorts(sampler: Sampler, seed: int, num_clients: int) -> str:
    """Return a digest of the first cohorts that a sampler draws."""
    return fingerprints.of_bytes(np.stack([sampler.draw(seed, number, num_clients) for number in range(3)]))


def of_start(server: Server) -> list[float]:
    """Return Σ|x| and Σx² of the first parameters and model state; devices may round them differently."""
    leaves = jax.tree.leaves((server.params, server.model_state))

    def sums(leaves: list[Any]) -> Any:
        wide = [jnp.abs(leaf).astype(jnp.float32) for leaf in leaves]
        return sum(map(jnp.sum, wide), jnp.float32(0)), sum((jnp.sum(each**2) for each in wide), jnp.float32(0))

    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.number)]
    return [float(f"{float(each):.7g}") for each in jax.jit(sums)(numbers)]


def batch_size_of(batching: Batching) -> int:
    """Return B."""
    length = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.eval_shape(lambda key, length: batching.slots(key, length, 1), _key(), length)[1].shape[1]


def made_with() -> dict[str, Any]:
    """Return what a traced program depends on besides the functions: versions, kind of device, 64-bit mode."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "device": jax.default_backend(),
        "x64": jax.config.jax_enable_x64,  # type: ignore[attr-defined]
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return None


def differences(there: Identity, here: Identity) -> dict[str, tuple[Any, Any]]:
    """Return (there, here) by name of all that differs; names missing there, or not comparable, are left out."""
    skipped = {MADE_WITH, *not_compared(there, here)}
    pairs = {name: (value, here.get(name)) for name, value in there.items() if name not in skipped}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def not_compared(there: Identity, here: Identity) -> list[str]:
    """Return the traced digests that are not comparable: other versions or another kind of device."""
    if there.get(MADE_WITH) == here.get(MADE_WITH):
        return []
    return [name for name in TRACED if name in there]


def _same(there: Any, here: Any) -> bool:
    if isinstance(there, list) and isinstance(here, list):
        return len(there) == len(here) and bool(np.allclose(there, here, rtol=1e-5, atol=0.0, equal_nan=True))
    return there == here


def _key() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def _member(algorithm: FederatedAlgorithm, server: Server, sample: Sample, batch_size: int) -> Cohort:
    """Return the shapes of one client with a single batch."""
    shapes = {name: jax.ShapeDtypeStruct((1, batch_size, *each.shape), each.dtype) for name, each in sample.items()}
    shapes["mask"] = jax.ShapeDtypeStruct((1, batch_size), jnp.bool_)
    row = jax.eval_shape(algorithm.init_client, server.params, server.model_state)
    return Cohort(jax.ShapeDtypeStruct((), jnp.int32), row, shapes)  # type: ignore[arg-type]
