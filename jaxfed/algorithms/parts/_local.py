"""K local steps of one client as one scan; all algorithms share this loop."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import corrections
from jaxfed.algorithms.parts.gradients import Estimator
from jaxfed.algorithms.parts.optimisers import check_optimiser, reseeded
from jaxfed.core import keys, tree
from jaxfed.core.checks import check_choice, check_range
from jaxfed.core.protocol import Fetch, Server
from jaxfed.core.stateful import AnyLossFn, check_form, evaluate, policy_of
from jaxfed.core.types import Batch, Key, Params, Scalar

Variant = Literal["paper", "reference"]


class LocalOptions(TypedDict, total=False):
    """Keyword arguments that every factory passes on to `LocalRule`, which documents them."""

    learning_rate_decay: float
    weight_decay: float
    clip_norm: float | None
    relaxation: float
    client_optimiser: optax.GradientTransformation | None
    variant: Variant


@dataclasses.dataclass(frozen=True)
class LocalRule:
    """Hyperparameters of a client's descent, common to all algorithms.

    Attributes:
        client_learning_rate: η₀ > 0, or an optax schedule ηₜ = schedule(t) over rounds, ≥ 0.
        prox_weight: w = 1/λ ≥ 0, strength of the proximal pull w·(x − x⁰); 0 leaves it out.
        learning_rate_decay: ηₜ = η₀·decayᵗ in round t (from 0), constant within a round; in (0, 1].
        weight_decay: wd ≥ 0; wd·x is added after the clip.
        clip_norm: largest global gradient norm, or None for no clip.
        relaxation: β ≥ 0 of the relaxed initialisation x⁰ = xᵗ + β·(xᵗ − wᵢ), wᵢ the client's last result; 0 leaves it
            out.
        client_optimiser: a whole optax optimiser of the local direction d, such as `optax.adam(1e-3)`, begun afresh
            every round: x ← x + ηₜ·u with u its update. Its own learning rate (over local steps) and ηₜ (over rounds)
            multiply; with an optimiser the factories' default is ηₜ = 1. None is plain SGD, x ← x − ηₜ·d. Random keys
            in its state are made different for every client and round.
        variant: where the clip is applied. "paper" clips the loss gradient only, so that the proximal force is always
            zero at x = x⁰. "reference" follows the authors' code: it clips the gradient together with the constant part
            of the correction, and adds the other half of the proximal term after the clip.

    Raises:
        ValueError: a value out of range, named; a schedule that is not ≥ 0 in its first round.
        TypeError: a client optimiser that is no optax optimiser; a schedule that cannot be traced.
    """

    client_learning_rate: float | optax.Schedule = 0.1
    prox_weight: float = 0.0
    learning_rate_decay: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    relaxation: float = 0.0
    client_optimiser: optax.GradientTransformation | None = None
    variant: Variant = "paper"

    def __post_init__(self) -> None:
        if callable(self.client_learning_rate):
            _check_schedule(self.client_learning_rate)
        else:
            check_range("client_learning_rate", self.client_learning_rate, above=0.0)
        check_optimiser("client_optimiser", self.client_optimiser)
        check_range("prox_weight", self.prox_weight, least=0.0)
        check_range("learning_rate_decay", self.learning_rate_decay, above=0.0, most=1.0)
        check_range("weight_decay", self.weight_decay, least=0.0)
        check_range("relaxation", self.relaxation, least=0.0)
        if self.clip_norm is not None:
            check_range("clip_norm", self.clip_norm, above=0.0)
        check_choice("variant", self.variant, DIRECTIONS)

    def learning_rate(self, round_number: Array) -> Scalar:
        """Return ηₜ = η₀·decayᵗ as a floating-point scalar []."""
        dtype = jnp.result_type(float)
        decay = jnp.power(jnp.asarray(self.learning_rate_decay, dtype), round_number.astype(dtype))
        base = self.client_learning_rate
        return jnp.asarray(base(round_number) if callable(base) else base, dtype) * decay


def _check_schedule(schedule: optax.Schedule) -> None:
    try:
        with jax.ensure_compile_time_eval():
            jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
            first = np.asarray(schedule(jnp.int32(0)), np.float32)
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            "client_learning_rate: expected a schedule of a traced round number, such as one of optax, got one that "
            "branches on it in Python; write jnp.where(round < 10, 0.1, 0.01)"
        ) from error
    got = str(first[()])
    if first.shape or not (np.isfinite(first) and first >= 0.0):
        raise ValueError(f"client_learning_rate: expected a schedule of finite numbers ≥ 0, got {got} in round 0")


class Iterate(NamedTuple):
    """A client's x, its x⁰, and what is added to every gradient of the round: b, or `reference_constant`."""

    params: Params
    anchor: Params
    constant: Params | None


class Direction(NamedTuple):
    """A descent direction, like the parameters, and its norm before clipping."""

    direction: Params
    norm: Scalar


def paper_direction(rule: LocalRule, iterate: Iterate, gradient: Params) -> Direction:
    """Return clip(g) + b + w·(x − x⁰) + wd·x."""
    pull = corrections.prox(iterate.params, iterate.anchor, rule.prox_weight)
    decay = corrections.shrinkage(iterate.params, rule.weight_decay)
    clipped = tree.clip(gradient, rule.clip_norm)
    return Direction(tree.add_present(clipped, iterate.constant, pull, decay), tree.norm(gradient))


def reference_direction(rule: LocalRule, iterate: Iterate, gradient: Params) -> Direction:
    """Return clip(g + b − w·x⁰) + (wd + w)·x: where the clip acts, the rest of the proximal term pulls to the origin.

    `iterate.constant` is b − w·x⁰.
    """
    corrected = tree.add_present(gradient, iterate.constant)
    decay = corrections.shrinkage(iterate.params, rule.weight_decay + rule.prox_weight)
    return Direction(tree.add_present(tree.clip(corrected, rule.clip_norm), decay), tree.norm(corrected))


def reference_constant(rule: LocalRule, anchor: Params, constant: Params | None) -> Params | None:
    """Return b − w·x⁰, computed once per round: each term left out of the step saves one pass over the parameters."""
    pull = corrections.prox_at_origin(anchor, rule.prox_weight)
    return constant if pull is None else tree.add_present(constant, pull)


DIRECTIONS: dict[str, Callable[[LocalRule, Iterate, Params], Direction]] = {
    "paper": paper_direction,
    "reference": reference_direction,
}


class ClientContext(NamedTuple):
    """Input of a client function.

    Attributes:
        server: the server's state, as broadcast.
        start: x⁰, the client's first iterate: xᵗ, or extrapolated under relaxed initialisation.
        memory: the algorithm's own part of the client's row.
        model_state: the model's non-trainable state at the start.
        batches: named arrays [K, B, ...].
        fetch: `fetch(part) -> batch` of one step's part of them.
        learning_rate: ηₜ.
        key: the client's key of this round.
    """

    server: Server
    start: Params
    memory: PyTree
    model_state: PyTree
    batches: Batch
    fetch: Fetch
    learning_rate: Scalar
    key: Key


class LocalSteps(NamedTuple):
    """Metrics of local steps, leaves [K, ...]: loss, norm before the clip, aux, and whether the step had data."""

    loss: Scalar
    gradient_norm: Scalar
    aux: Any
    active: Array


class LocalResult(NamedTuple):
    """A client after its local steps.

    Attributes:
        params: x_K.
        delta: U = x_K − x⁰.
        memory: the estimator's memory after the last step.
        model_state: the model's state after the last step.
        steps: metrics of every step, leaves [K, ...].
        path: Σ d over the steps, the inputs of the client optimiser; None without one, where it equals −U/ηₜ.
    """

    params: Params
    delta: Params
    memory: Any
    model_state: PyTree
    steps: LocalSteps
    path: Params | None = None

    @property
    def num_steps(self) -> Array:
        """Steps that had data, int32 []."""
        return jnp.sum(self.steps.active, dtype=jnp.int32)


def mean_direction(
    context: ClientContext, local: LocalResult, otherwise: Params, nominal_steps: float | None = None
) -> Params:
    """Return D, the mean direction d of a client's steps: −U/(K·ηₜ), or Σ d/K under a client optimiser.

    Args:
        context: of the client.
        local: its result.
        otherwise: D of a client that had no step or, without an optimiser, a learning rate of 0.
        nominal_steps: K, the same for all clients; by default each client's own number of steps.
    """
    dtype = context.learning_rate.dtype
    own = local.num_steps.astype(dtype)
    steps = own if nominal_steps is None else jnp.where(own > 0, jnp.asarray(nominal_steps, dtype), 0)
    if local.path is None:
        return corrections.mean_direction(local.delta, context.learning_rate, steps, otherwise)
    return corrections.mean_direction(local.path, jnp.asarray(-1.0, dtype), steps, otherwise)


class Carry(NamedTuple):
    """State carried from local step to local step: x, the client optimiser's state, memory, model state and Σ d.

    Frozen model state is not carried: a plan that batches clients would copy it for each of them.
    """

    params: Params
    moments: optax.OptState
    memory: Any
    model_state: PyTree
    path: Params | None


@dataclasses.dataclass(frozen=True)
class Solver:
    """K steps x ← x − ηₜ·d, d = g + b + w·(x − x⁰) + wd·x clipped by `rule.variant`; or a client optimiser's.

    Attributes:
        loss_fn: F, plain or `Stateful`.
        estimate: the estimator of the gradient g.
        rule: w, wd, the clip and the client optimiser.
    """

    loss_fn: AnyLossFn
    estimate: Estimator
    rule: LocalRule

    def __post_init__(self) -> None:
        check_form(self.loss_fn)

    def __call__(self, context: ClientContext, constant: Params | None = None, memory: Any = ()) -> LocalResult:
        """Descend from `context.start`, with b = `constant` added to every gradient.

        A step whose mask is all False leaves parameters, optimiser, memory and model state as they were. With K = 0
        the loss function is not called: the result has its shapes and dtypes, but no aux.
        """
        start, num_steps = context.start, context.batches["mask"].shape[0]
        if self.rule.variant == "reference":
            constant = reference_constant(self.rule, start, constant)

        def step(carry: Carry, step_input: tuple[Batch, Array]) -> tuple[Carry, LocalSteps]:
            (batch, number), active = step_input, jnp.any(step_input[0]["mask"])
            moved, info = self.step(carry, context.fetch(batch), number, context, constant)
            return tree.where(active, moved, carry), info._replace(active=active)

        last = Carry(start, (), memory, () if self.frozen else context.model_state, None)
        if (optimiser := self.rule.client_optimiser) is not None:
            moments = reseeded(optimiser.init(start), context.key)
            last = last._replace(moments=moments, path=optax.tree.zeros_like(start))
        steps = LocalSteps(jnp.zeros(0), jnp.zeros(0), (), jnp.zeros(0, bool))
        if num_steps:
            last, steps = jax.lax.scan(step, last, (context.batches, jnp.arange(num_steps)))
        model_state = context.model_state if self.frozen else last.model_state
        delta = optax.tree.sub(last.params, start)
        return LocalResult(last.params, delta, last.memory, model_state, steps, last.path)

    @property
    def frozen(self) -> bool:
        """Whether the model's state is the same in every step."""
        return policy_of(self.loss_fn) == "frozen"

    def step(
        self, carry: Carry, batch: Batch, number: Array, context: ClientContext, constant: Params | None
    ) -> tuple[Carry, LocalSteps]:
        """Do one local step on a batch with samples."""
        key = keys.step_key(context.key, number)

        def objective(params: Params) -> tuple[Scalar, Any]:
            model_state = context.model_state if self.frozen else carry.model_state
            loss, (model_state, aux) = evaluate(self.loss_fn, params, model_state, batch, key)
            return loss, (() if self.frozen else model_state, aux)

        gradient, memory, loss, (model_state, aux) = self.estimate(objective, carry.params, carry.memory)
        iterate = Iterate(carry.params, context.start, constant)
        direction, norm = DIRECTIONS[self.rule.variant](self.rule, iterate, gradient)
        params, moments, path = self._descend(carry, direction, context.learning_rate)
        return Carry(params, moments, memory, model_state, path), LocalSteps(loss, norm, aux, jnp.array(True))

    def _descend(
        self, carry: Carry, direction: Params, learning_rate: Scalar
    ) -> tuple[Params, optax.OptState, Params | None]:
        optimiser = self.rule.client_optimiser
        if optimiser is None:
            return optax.tree.sub(carry.params, tree.scale(learning_rate, direction)), (), None
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimiser.update(direction, carry.moments, carry.params)
        params = optax.apply_updates(carry.params, tree.scale(learning_rate, updates))
        return params, moments, optax.tree.add(carry.path, direction)
