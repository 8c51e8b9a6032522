"""Plans: how the clients of a cohort are laid out over time and devices. The only `vmap` over clients is here."""

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
        chunk_size: clients that are batched together; 1 batches none, and an empty slot is skipped.
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
        found = _accumulated(Vmap(), client, chunks, key)
        slots = _without_sums(found)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(cohort.ids)], slots)
        return flat._replace(message=found.message, weight=found.weight)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Plan: the slots of a cohort spread over all devices of a mesh, on each of them another plan.

    Attributes:
        mesh: its size must divide the number of slots.
        inner: what every device does with its own slots.
    """

    mesh: Mesh
    inner: Plan = Vmap()

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `inner` on every device and add up the messages over all of them (one all-reduce)."""
        check_divides(self.mesh, len(cohort.ids))
        axes = self.mesh.axis_names
        slots, everywhere = PartitionSpec(axes), PartitionSpec()

        def local(cohort: Cohort, key: Key) -> CohortResult:
            found = self.inner(client, cohort, key)
            message, weight = jax.lax.psum((found.message, found.weight), axes)
            return found._replace(message=message, weight=weight)

        specs: Any = (everywhere, everywhere, slots, slots, slots, slots)
        out, mesh = CohortResult(*specs), automatic(self.mesh)
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(slots, everywhere), out_specs=out, check_vma=False)
        return mapped(cohort, key)


def vmap() -> Plan:
    """Plan that trains all clients of a cohort at once: memory grows with the cohort, there is no loop."""
    return Vmap()


def chunked(chunk_size: int) -> Plan:
    """Plan that trains `chunk_size` clients at once, chunk after chunk: memory grows with the chunk."""
    return Chunked(chunk_size)


def map() -> Plan:  # noqa: A001  the plan's name in the issue of every FL library
    """Plan that trains one client after the other, unbatched: least memory, and empty slots cost nothing."""
    return Chunked(1)


def sharded(mesh: Mesh, inner: Plan | None = None) -> Plan:
    """Plan that spreads the slots over a mesh, each device following `inner` (default `vmap()`).

    Arrays that lie on a mesh already, such as the server, must lie on one of Auto axes:
    `jaxfed.layout.sharding.automatic(mesh)` makes it of another; `simulate` does so by itself.
    """
    return Sharded(mesh, inner or Vmap())


def name_of(plan: Plan) -> str:
    """A plan's name, as `named` takes it; the mesh of a sharded one is left out, and of any other plan its repr."""
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
    """The plan called "vmap", "map" or "chunked(4)". Raises ValueError for other names."""
    if size := re.fullmatch(r"chunked\((\d+)\)", name):
        return Chunked(int(size[1]))
    check_choice("plan", name, ("vmap", "map", "chunked(4)"))
    return Vmap() if name == "vmap" else Chunked(1)


def candidates(slots: int, mesh: Mesh | None = None) -> list[Plan]:
    """Plans worth a trial for a cohort: one by one, chunks that divide a device's share, and all at once."""
    share = slots // mesh.size if mesh is not None else slots
    sizes = [size for size in (2, 4, 5, 8, 10, 16, 20, 25, 32, 50) if size < share and share % size == 0]
    return [Chunked(1), *(Chunked(size) for size in sizes), *([Vmap()] if share > 1 else [])]


def check_divides(mesh: Mesh, slots: int) -> None:
    """Raise ValueError unless the mesh's size divides the number of slots."""
    if slots % mesh.size:
        raise ValueError(f"a mesh of {mesh.size} devices must divide the cohort's {slots} slots; change one of them")


def reduce(cohort: Cohort, updates: ClientUpdate) -> CohortResult:
    """Sums of the messages [C, ...] over the clients present and finite, in float32 or wider; others keep their row."""
    present = cohort.ids >= 0
    finite = jax.vmap(tree.all_finite)((updates.message, updates.row))
    used = present & finite
    delta, average, total, model_state = updates.message
    delta, average, model_state = weighted_sum((delta, average, model_state), cohort, used)
    weights = jnp.ones(used.shape) if cohort.weights is None else cohort.weights
    return CohortResult(
        message=ClientMessage(delta, average, tree.masked_sum(total, used), model_state),
        weight=tree.masked_sum(weights, used),
        rows=tree.where(used, updates.row, cohort.rows),
        clients=updates.info,
        used=used,
        excluded=present & ~finite,
    )


def weighted_sum(values: Tree, cohort: Cohort, used: Array) -> Tree:
    """Σ over the clients used of wᵢ·valuesᵢ, leaves [C, ...] → [...], in float32 or wider; wᵢ = 1 without weights."""
    if cohort.weights is not None:
        values = tree.scale_rows(cohort.weights, tree.widened(values))
    return tree.masked_sum(values, used)


def gathered(plan: Plan, client: ClientFn, cohort: Cohort, key: Key) -> CohortResult:
    """What `plan` returns, with every client's message, leaves [C, ...], in the place of their sums.

    Messages travel beside the rows, so any plan will do: zeros stand for the clients that are not used.
    """

    def beside(member: Cohort, client_key: Key) -> ClientUpdate:
        update = client(member._replace(rows=member.rows[0]), client_key)
        both: Any = (update.row, update.message)
        return ClientUpdate(ClientMessage(()), both, update.info)

    sent = jax.eval_shape(jax.vmap(client), cohort, keys.client_keys(key, cohort.ids)).message
    rows: Any = (cohort.rows, optax.tree.zeros_like(sent))
    found = plan(beside, cohort._replace(rows=rows), key)
    both: Any = found.rows
    return found._replace(message=both[1], rows=both[0])


def means(result: CohortResult) -> ClientMessage:
    """The cohort's message: sums divided by the sum of weights, `total` left as the sum that it is."""
    share = 1.0 / jnp.where(result.weight > 0, result.weight, 1)
    delta, average, total, model_state = result.message
    delta, average, model_state = tree.scale(share, (delta, average, model_state))
    return ClientMessage(delta, average, total, model_state)


MEAN = Aggregate(lambda result, cohort, key: (means(result), result.used))
"""The weighted mean of what clients sent."""


def _accumulated(inner: Plan, client: ClientFn, chunks: Cohort, key: Key) -> CohortResult:
    """Scan `inner` over chunks (the leading axis), adding up messages and weights; the rest is stacked."""
    shapes = jax.eval_shape(lambda chunk: inner(client, chunk, key), jax.tree.map(lambda leaf: leaf[0], chunks))

    def visit(sums: tuple[ClientMessage, Array], chunk: Cohort) -> tuple[tuple[ClientMessage, Array], CohortResult]:
        found = jax.lax.cond(
            jnp.any(chunk.ids >= 0),
            lambda: inner(client, chunk, key),
            lambda: optax.tree.zeros_like(shapes)._replace(rows=chunk.rows),
        )
        return optax.tree.add(sums, (found.message, found.weight)), _without_sums(found)

    (message, weight), found = jax.lax.scan(visit, optax.tree.zeros_like((shapes.message, shapes.weight)), chunks)
    return found._replace(message=message, weight=weight)


def _without_sums(found: CohortResult) -> CohortResult:
    """Only what every slot has of its own."""
    nothing: Any = ()
    return found._replace(message=nothing, weight=nothing)


def _alone(client: ClientFn, member: Cohort, key: Key) -> CohortResult:
    """One slot of a cohort, without any batching: the result without a leading axis.

    Slots are scanned as they lie: an axis of length 1 in the loop's input makes XLA copy all batches.
    """
    update = client(member, keys.client_key(key, member.ids))
    one, updates = jax.tree.map(lambda leaf: leaf[None], (member._replace(batches={}), update))
    found = reduce(one, updates)
    rest = jax.tree.map(lambda leaf: leaf[0], _without_sums(found))
    return rest._replace(message=found.message, weight=found.weight)


def _padded(cohort: Cohort, size: int) -> Cohort:
    missing = -len(cohort.ids) % size
    if not missing:
        return cohort
    filled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1].repeat(missing, axis=0)]), cohort)
    return filled._replace(ids=filled.ids.at[-missing:].set(-1))
