"""Plans: how the clients of a cohort are laid out over time and devices. The only `vmap` over clients is here."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from jaxfed import tree
from jaxfed.algorithm import ClientFn, ClientUpdate, Cohort, CohortResult, Message, Plan
from jaxfed.checks import check_range
from jaxfed.types import Key

Tree = TypeVar("Tree", bound=PyTree)


@dataclasses.dataclass(frozen=True)
class Vmap:
    """Plan: all clients of the cohort at once, as one batched computation."""

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `client` on every slot of the cohort and reduce."""
        return reduce(cohort, jax.vmap(client)(cohort, client_keys(key, cohort.ids)))


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Plan: `chunk_size` clients at once, one chunk after the other; an empty chunk costs nothing.

    Attributes:
      chunk_size: clients that are batched together; 1 batches none, and an empty slot is skipped.
    """

    chunk_size: int = 1

    def __post_init__(self) -> None:
        check_range("chunk_size", self.chunk_size, least=1)

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Scan over chunks, adding up their messages; the cohort is padded with empty slots to whole chunks."""
        size = min(self.chunk_size, len(cohort.ids))
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), _padded(cohort, size))
        inner = _one_by_one if size == 1 else Vmap()
        shapes = jax.eval_shape(lambda chunk: inner(client, chunk, key), jax.tree.map(lambda leaf: leaf[0], chunks))

        def visit(sums: tuple[Message, Array], chunk: Cohort) -> tuple[tuple[Message, Array], CohortResult]:
            found = jax.lax.cond(
                jnp.any(chunk.ids >= 0),
                lambda: inner(client, chunk, key),
                lambda: tree.zeros_of(shapes)._replace(rows=chunk.rows),
            )
            return tree.total(sums, (found.message, found.weight)), found._replace(message=(), weight=())

        (message, weight), found = jax.lax.scan(visit, tree.zeros_of((shapes.message, shapes.weight)), chunks)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(cohort.ids)], found)
        return flat._replace(message=message, weight=weight)


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

        specs = CohortResult(everywhere, everywhere, slots, slots, slots, slots)
        mapped = jax.shard_map(
            local, mesh=self.mesh, in_specs=(slots, everywhere), out_specs=specs, check_vma=False
        )
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
    """Plan that spreads the slots over a mesh, each device following `inner` (default `vmap()`)."""
    return Sharded(mesh, inner or Vmap())


def check_divides(mesh: Mesh, slots: int) -> None:
    """Raise ValueError unless the mesh's size divides the number of slots."""
    if slots % mesh.size:
        raise ValueError(f"a mesh of {mesh.size} devices must divide the cohort's {slots} slots; change one of them")


def client_keys(key: Key, ids: Array) -> Key:
    """One key [C] for every client, by its id: a client's randomness depends on no slot, chunk or device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def reduce(cohort: Cohort, updates: ClientUpdate) -> CohortResult:
    """Sums of the messages [C, ...] over the clients present and finite; the others keep their row."""
    present = cohort.ids >= 0
    finite = jax.vmap(tree.all_finite)((updates.message, updates.row))
    used = present & finite
    delta, average, total, model_state = updates.message
    delta, average, model_state = weighted_sum((delta, average, model_state), cohort, used)
    weights = jnp.ones(used.shape) if cohort.weights is None else cohort.weights
    return CohortResult(
        message=Message(delta, average, tree.masked_sum(total, used), model_state),
        weight=tree.masked_sum(weights, used),
        rows=tree.where(used, updates.row, cohort.rows),
        clients=updates.info,
        used=used,
        excluded=present & ~finite,
    )


def weighted_sum(values: Tree, cohort: Cohort, used: Array) -> Tree:
    """Σ over the clients used of wᵢ·valuesᵢ, leaves [C, ...] → [...]; wᵢ = 1 without weights."""
    return tree.masked_sum(values if cohort.weights is None else tree.scale_rows(cohort.weights, values), used)


def means(result: CohortResult) -> Message:
    """The cohort's message: sums divided by the sum of weights, `total` left as the sum that it is."""
    share = 1.0 / jnp.where(result.weight > 0, result.weight, 1)
    delta, average, total, model_state = result.message
    delta, average, model_state = tree.scale(share, (delta, average, model_state))
    return Message(delta, average, total, model_state)


def _one_by_one(client: ClientFn, cohort: Cohort, key: Key) -> CohortResult:
    """A cohort of one slot, without any batching."""
    member = jax.tree.map(lambda leaf: leaf[0], cohort)
    update = client(member, jax.random.fold_in(key, member.ids))
    return reduce(cohort, jax.tree.map(lambda leaf: leaf[None], update))


def _padded(cohort: Cohort, size: int) -> Cohort:
    missing = -len(cohort.ids) % size
    if not missing:
        return cohort
    filled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1].repeat(missing, axis=0)]), cohort)
    return filled._replace(ids=filled.ids.at[-missing:].set(-1))
