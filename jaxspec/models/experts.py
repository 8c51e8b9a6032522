"""A mixture of experts: a router chooses a few of many feed-forward blocks for every token.

On a mesh every device holds some of the experts, computes what its own add, and one all-reduce sums that.

With fewer choices (k · B · T) than experts on a device, as in decoding, only the chosen experts are read: their weights
are gathered, once for every choice. Otherwise almost every expert is chosen by some token, and all run over all tokens
one after another, in constant memory; for long prompts that is E/k times the arithmetic of the chosen ones alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxspec.models.base import Array
from jaxspec.models.config import DecoderConfig, Experts
from jaxspec.models.layers import FeedForward, bias, gating, multiply, project, weight

#: Mesh axis over which experts are divided.
AXIS = "model"
#: Parameters of the experts, each with a leading axis of experts.
STACKED = ("expert_gate_up", "expert_gate_up_bias", "expert_down", "expert_down_bias")


def mixture(config: DecoderConfig, layer: int, rngs: nnx.Rngs) -> "MixtureOfExperts | None":
    """Return the mixture of experts of a layer; None if it has an ordinary feed-forward block."""
    experts = config.experts
    return None if experts is None or experts.is_dense(layer) else MixtureOfExperts(config, experts, rngs)


class MixtureOfExperts(nnx.Module):
    """Σ_e p_e · expert_e(x) over the k likeliest experts, + σ(gate · x) · shared(x); p = softmax(router · x).

    An expert is a feed-forward block; p is optionally divided by its sum over the k experts.
    """

    def __init__(self, config: DecoderConfig, experts: Experts, rngs: nnx.Rngs):
        c, e, parts = config, experts, 2 if config.block.gated else 1
        self.router = weight(rngs, (e.count, c.width), c.width)
        self.router_bias = bias((e.count,), e.router_bias)
        self.expert_gate_up = weight(rngs, (e.count, parts, e.hidden, c.width), c.width)
        self.expert_gate_up_bias = bias((e.count, parts, e.hidden), c.block.bias)
        self.expert_down = weight(rngs, (e.count, c.width, e.hidden), e.hidden, (2 * c.num_layers) ** -0.5)
        self.expert_down_bias = bias((e.count, c.width), c.block.bias)
        self.shared = FeedForward(config, rngs, e.shared_hidden) if e.shared_hidden else None
        self.shared_gate = weight(rngs, (1, c.width), c.width) if e.shared_hidden else None
        self.experts, self.inner = experts, gating(config.block)

    def __call__(self, x: Array) -> Array:
        """Return the block's output for x [D, B, T]."""
        y = over_devices(self.run, self.stacked(), x, *self.route(x))
        if self.shared is None or self.shared_gate is None:
            return y
        return y + jax.nn.sigmoid(project("od,dbt->obt", self.shared_gate, x)) * self.shared(x)

    def route(self, x: Array) -> tuple[Array, Array]:
        """Return probabilities and numbers of the experts chosen for x [D, B, T]: [k, B, T] each."""
        logits = jnp.einsum("ed,dbt->bte", self.router[...], x, preferred_element_type=jnp.float32)
        logits = logits if self.router_bias is None else logits + self.router_bias[...].astype(jnp.float32)[None, None]
        likeliest, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), self.experts.top_k)
        if self.experts.renormalised:
            likeliest = likeliest / jnp.sum(likeliest, axis=-1, keepdims=True)
        return jnp.moveaxis(likeliest, -1, 0).astype(x.dtype), jnp.moveaxis(chosen, -1, 0)

    def stacked(self) -> dict[str, Any]:
        """Return the parameters of the experts."""
        params = {name: getattr(self, name) for name in STACKED}
        return {name: param.get_value() for name, param in params.items() if param is not None}

    def run(self, params: dict[str, Any], x: Array, likeliest: Array, chosen: Array) -> Array:
        """Return what the experts of ``params`` add; numbers outside these belong to other devices' experts."""
        count = len(jax.tree.leaves(params)[0])
        return (self.run_chosen if chosen.size < count else self.run_all)(params, x, likeliest, chosen)

    def run_chosen(self, params: dict[str, Any], x: Array, likeliest: Array, chosen: Array) -> Array:
        """Gather the weights of every choice, and run each on its token."""
        own = (chosen >= 0) & (chosen < len(jax.tree.leaves(params)[0]))
        numbers = jnp.where(own, chosen, 0).reshape(-1)
        taken = jax.tree.map(lambda leaf: leaf[numbers], params)
        tokens = jnp.broadcast_to(x.reshape(len(x), -1).T[None], (len(chosen), x[0].size, len(x)))
        added = jax.vmap(self.expert)(taken, tokens.reshape(-1, len(x), 1, 1)).reshape(*chosen.shape, len(x))
        return jnp.einsum("kbtd,kbt->dbt", jnp.where(own[..., None], added, 0), likeliest)

    def run_all(self, params: dict[str, Any], x: Array, likeliest: Array, chosen: Array) -> Array:
        """Run one expert after another on all tokens, and keep what it adds to those that chose it."""

        def step(total: Array, expert: tuple[Array, dict[str, Any]]) -> tuple[Array, None]:
            number, own = expert
            share = jnp.sum(jnp.where(chosen == number, likeliest, 0), axis=0)
            is_chosen = jnp.any(chosen == number, axis=0)
            return total + jnp.where(is_chosen[None], self.expert(own, x) * share[None], 0), None

        numbers = jnp.arange(len(jax.tree.leaves(params)[0]))
        return jax.lax.scan(step, jnp.zeros_like(x), (numbers, params))[0]

    def expert(self, params: dict[str, Any], x: Array) -> Array:
        """Return the output of one expert for x [D, B, T]."""
        gate_up_bias, down_bias = params.get("expert_gate_up_bias"), params.get("expert_down_bias")
        inner = self.inner(multiply("gfd,dbt->gfbt", params["expert_gate_up"], x, gate_up_bias))
        return multiply("df,fbt->dbt", params["expert_down"], inner, down_bias)


def over_devices(run: Callable[..., Array], params: dict[str, Any], x: Array, likeliest: Array, chosen: Array) -> Array:
    """Run every device's experts there and sum what they add; on a single device, ``run`` as it is.

    The mesh is that of the parameters: inside a program their types have it.
    """
    first = jax.tree.leaves(params)[0]
    mesh = jax.typeof(first).sharding.mesh
    devices = dict(mesh.shape).get(AXIS, 1)
    if devices == 1 or len(first) % devices:
        return run(params, x, likeliest, chosen)

    def own(params: dict[str, Any], x: Array, likeliest: Array, chosen: Array) -> Array:
        before = jax.lax.axis_index(AXIS) * len(jax.tree.leaves(params)[0])
        varying = jax.lax.pcast(x, (AXIS,), to="varying")
        return jax.lax.psum(run(params, varying, likeliest, chosen - before), AXIS)

    whole, divided = PartitionSpec(), PartitionSpec(AXIS)
    specs = (divided, whole, whole, whole)
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=whole, axis_names={AXIS})(
        params, x, likeliest, chosen
    )
