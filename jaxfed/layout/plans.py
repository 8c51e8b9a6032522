"""Plans: schedules of a cohort over time and devices. The only `vmap` over clients is in this file."""

import dataclasses
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from jaxfed.core import keys, tree
from jaxfed.core.checks import check_choice, check_range, python_fields
from jaxfed.core.protocol import Aggregate, ClientFn, ClientMessage, ClientUpdate, Cohort, CohortResult, Plan
from jaxfed.core.types import Key
from jaxfed.layout.sharding import automatic

Tree = TypeVar("Tree", bound=PyTree)


@dataclasses.dataclass(frozen=True)
class Vmap:
    """Plan: all clients of the cohort at once, as one batched computation."""

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `client` on every slot of the cohort and reduce."""
        return reduce(cohort, jax.vmap(client)(cohort, keys.client_keys(key, cohort.ids)))


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Plan: `chunk_size` clients at once, one chunk after the other; an empty chunk costs nothing.

    Attributes:
        chunk_size: clients per chunk; 1 means no batching, and empty slots are skipped.
    """

    chunk_size: int = 1

    def __post_init__(self) -> None:
        check_range("chunk_size", self.chunk_size, least=1, whole=True)
        python_fields(self)

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Scan over chunks, adding up their messages; the cohort is padded with empty slots to whole chunks."""
        if self.chunk_size == 1:
            return _accumulated(_alone, client, cohort, key)
        size = min(self.chunk_size, len(cohort.ids))
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), _padded(cohort, size))
        result = _accumulated(Vmap(), client, chunks, key)
        slots = _without_sums(result)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(cohort.ids)], slots)
        return flat._replace(message=result.message, weight=result.weight)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Plan: the slots of a cohort sharded over all devices of a mesh, each of which follows another plan.

    Attributes:
        mesh: its size must divide the number of slots.
        inner: plan of every device for its own slots.
    """

    mesh: Mesh
    inner: Plan = Vmap()

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `inner` on every device and add up the messages over all of them (one all-reduce)."""
        check_divides(self.mesh, len(cohort.ids))
        axes = self.mesh.axis_names
        slots, everywhere = PartitionSpec(axes), PartitionSpec()

        def local(cohort: Cohort, key: Key) -> CohortResult:
            result = self.inner(client, cohort, key)
            message, weight = jax.lax.psum((result.message, result.weight), axes)
            return result._replace(message=message, weight=weight)

        specs: Any = (everywhere, everywhere, slots, slots, slots, slots)
        out, mesh = CohortResult(*specs), automatic(self.mesh)
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(slots, everywhere), out_specs=out, check_vma=False)
        return mapped(cohort, key)


def vmap() -> Plan:
    """Train all clients of a cohort at once: memory grows with the cohort, there is no loop."""
    return Vmap()


def chunked(chunk_size: int) -> Plan:
    """Train `chunk_size` clients at once, chunk after chunk: memory grows with the chunk."""
    return Chunked(chunk_size)


def map() -> Plan:  # noqa: A001  the plan's usual name
    """Train one client after the other, unbatched: least memory, and empty slots cost nothing."""
    return Chunked(1)


def sharded(mesh: Mesh, inner: Plan | None = None) -> Plan:
    """Shard the slots over a mesh, each device following `inner` (default `vmap()`).

    Arrays that are on a mesh already, such as the server, need a mesh with axes of type Auto, which
    `jaxfed.layout.sharding.automatic(mesh)` returns; `simulate` does this itself.
    """
    return Sharded(mesh, inner or Vmap())


def name_of(plan: Plan) -> str:
    """Return the name of a plan for `named`, without the mesh of a sharded one; the repr of a user's plan."""
    match plan:
        case Vmap():
            return "vmap"
        case Chunked(chunk_size=1):
            return "map"
        case Chunked(chunk_size=size):
            return f"chunked({size})"
        case Sharded(inner=inner):
            return name_of(inner)
    return repr(plan)


def named(name: str) -> Plan:
    """Return the plan called "vmap", "map" or "chunked(4)". Raises ValueError for other names."""
    if size := re.fullmatch(r"chunked\((\d+)\)", name):
        return Chunked(int(size[1]))
    check_choice("plan", name, ("vmap", "map", "chunked(4)"))
    return Vmap() if name == "vmap" else Chunked(1)


def candidates(slots: int, mesh: Mesh | None = None) -> list[Plan]:
    """Return the plans that `auto` tries: one by one, chunks that divide a device's share, and all at once."""
    share = slots // mesh.size if mesh is not None else slots
    sizes = [size for size in (2, 4, 5, 8, 10, 16, 20, 25, 32, 50) if size < share and share % size == 0]
    return [Chunked(1), *(Chunked(size) for size in sizes), *([Vmap()] if share > 1 else [])]


def check_divides(mesh: Mesh, slots: int) -> None:
    """Raise ValueError unless the mesh's size divides the number of slots."""
    if slots % mesh.size:
        raise ValueError(f"a mesh of {mesh.size} devices must divide the cohort's {slots} slots; change one of them")


def reduce(cohort: Cohort, updates: ClientUpdate) -> CohortResult:
    """Sum the messages [C, ...] of present and finite clients, in float32 or wider; others keep their row."""
    present = cohort.ids >= 0
    finite = jax.vmap(tree.all_finite)((updates.message, updates.row))
    used = present & finite
    weights = jnp.ones(used.shape) if cohort.weights is None else cohort.weights
    return CohortResult(
        message=_summed(updates.message, cohort, used),
        weight=tree.masked_sum(weights, used),
        rows=tree.where(used, updates.row, cohort.rows),
        clients=updates.info,
        used=used,
        excluded=present & ~finite,
    )


def summed(result: CohortResult, cohort: Cohort) -> CohortResult:
    """Return the result of `gathered` with the sums of the messages of the clients used."""
    return result._replace(message=_summed(result.message, cohort, result.used))


def _summed(message: ClientMessage, cohort: Cohort, used: Array) -> ClientMessage:
    delta, average, total, model_state = message
    delta, average, model_state = weighted_sum((delta, average, model_state), cohort, used)
    return ClientMessage(delta, average, tree.masked_sum(total, used), model_state)


def weighted_sum(values: Tree, cohort: Cohort, used: Array) -> Tree:
    """Return Σ wᵢ·valuesᵢ over the clients used, leaves [C, ...] → [...], in float32 or wider; wᵢ = 1 by default."""
    if cohort.weights is not None:
        values = tree.scale_rows(cohort.weights, tree.widened(values))
    return tree.masked_sum(values, used)


def gathered(plan: Plan, client: ClientFn, cohort: Cohort, key: Key) -> CohortResult:
    """Return the result of `plan` with every client's message, leaves [C, ...], instead of their sums.

    Messages are returned with the rows, so any plan works; unused clients have zeros.
    """

    def beside(member: Cohort, client_key: Key) -> ClientUpdate:
        update = client(member._replace(rows=member.rows[0]), client_key)
        pair: Any = (update.row, update.message)
        return ClientUpdate(ClientMessage(()), pair, update.info)

    sent = jax.eval_shape(jax.vmap(client), cohort, keys.client_keys(key, cohort.ids)).message
    rows: Any = (cohort.rows, optax.tree.zeros_like(sent))
    result = plan(beside, cohort._replace(rows=rows), key)
    pair: Any = result.rows
    return result._replace(message=pair[1], rows=pair[0])


def means(result: CohortResult) -> ClientMessage:
    """Return the cohort's message: sums divided by the sum of weights; `total` stays a sum."""
    share = 1.0 / jnp.where(result.weight > 0, result.weight, 1)
    delta, average, total, model_state = result.message
    delta, average, model_state = tree.scale(share, (delta, average, model_state))
    return ClientMessage(delta, average, total, model_state)


MEAN = Aggregate(lambda result, cohort, key: (means(result), result.used))
"""The weighted mean of what clients sent."""


def _accumulated(inner: Plan, client: ClientFn, chunks: Cohort, key: Key) -> CohortResult:
    """Scan `inner` over chunks (the leading axis); sum messages and weights, stack the rest."""
    shapes = jax.eval_shape(lambda chunk: inner(client, chunk, key), jax.tree.map(lambda leaf: leaf[0], chunks))

    def visit(sums: tuple[ClientMessage, Array], chunk: Cohort) -> tuple[tuple[ClientMessage, Array], CohortResult]:
        result = jax.lax.cond(
            jnp.any(chunk.ids >= 0),
            lambda: inner(client, chunk, key),
            lambda: optax.tree.zeros_like(shapes)._replace(rows=chunk.rows),
        )
        return optax.tree.add(sums, (result.message, result.weight)), _without_sums(result)

    (message, weight), result = jax.lax.scan(visit, optax.tree.zeros_like((shapes.message, shapes.weight)), chunks)
    return result._replace(message=message, weight=weight)


def _without_sums(result: CohortResult) -> CohortResult:
    """Return the values of each slot, without the sums."""
    nothing: Any = ()
    return result._replace(message=nothing, weight=nothing)


def _alone(client: ClientFn, member: Cohort, key: Key) -> CohortResult:
    """Run one slot of a cohort without any batching; return the result without a leading axis.

    Slots are scanned without reshaping: an axis of length 1 in the loop's input makes XLA copy all batches.
    """
    update = client(member, keys.client_key(key, member.ids))
    one, updates = jax.tree.map(lambda leaf: leaf[None], (member._replace(batches={}), update))
    result = reduce(one, updates)
    rest = jax.tree.map(lambda leaf: leaf[0], _without_sums(result))
    return rest._replace(message=result.message, weight=result.weight)


def _padded(cohort: Cohort, size: int) -> Cohort:
    missing = -len(cohort.ids) % size
    if not missing:
        return cohort
    filled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1].repeat(missing, axis=0)]), cohort)
    return filled._replace(ids=filled.ids.at[-missing:].set(-1))
