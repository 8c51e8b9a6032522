"""NumPy oracles: federated algorithms on flat vectors, written from the equations with the papers' own symbols.

They share nothing with `jaxfed`: parameters are one vector, clients and steps are Python loops, and a dual is the
paper's ĝᵢ, not the h = −λ·ĝᵢ that the package carries.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Vector = np.ndarray
Gradient = Callable[[Vector, object], Vector]
"""`gradient(x, batch)` of one mini-batch."""


def softmax_regression_gradient(num_classes: int) -> Gradient:
    """Gradient of the mean cross-entropy of logits x·W + b; the vector is (b, W), a batch (inputs, labels)."""

    def gradient(vector: Vector, batch: tuple[np.ndarray, np.ndarray]) -> Vector:
        inputs, labels = batch
        bias, weight = vector[:num_classes], vector[num_classes:].reshape(-1, num_classes)
        logits = inputs @ weight + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(num_classes)[labels]) / len(labels)
        return np.concatenate([error.sum(axis=0), (inputs.T @ error).ravel()])

    return gradient


def fedspeed_round(
    gradient: Gradient,
    x: Vector,
    duals: list[Vector],
    cohort: Sequence[tuple[int, Sequence[object]]],
    *,
    eta: float,
    lam: float,
    rho: float,
    alpha: float,
    normalise: bool = False,
    over_population: bool = False,
) -> Vector:
    """Algorithm 1 of the FedSpeed paper; changes `duals` (ĝᵢ of every client) in place; cohort is (client, batches)."""
    sent = []
    for client, batches in cohort:
        xk = x.copy()
        for batch in batches:
            g1 = gradient(xk, batch)
            e = rho * g1 / (np.linalg.norm(g1) + 1e-7) if normalise else rho * g1
            g2 = gradient(xk + e, batch)
            xk = xk - eta * ((1 - alpha) * g1 + alpha * g2 - duals[client] + (xk - x) / lam)
        duals[client] = duals[client] - (xk - x) / lam
        sent.append(xk if over_population else xk - lam * duals[client])
    return np.mean(sent, axis=0) - (lam * np.mean(duals, axis=0) if over_population else 0.0)


def feddyn_cohort_round(
    gradient: Gradient,
    x: Vector,
    lagrange: list[Vector],
    cohort: Sequence[tuple[int, Sequence[object]]],
    *,
    eta: float,
    alpha: float,
) -> Vector:
    """FedDyn (Acar et al. 2021) with its α: a linear term ∇Lᵢ per client, the server's h from those of the cohort."""
    results = []
    for client, batches in cohort:
        theta = x.copy()
        for batch in batches:
            theta = theta - eta * (gradient(theta, batch) - lagrange[client] + alpha * (theta - x))
        lagrange[client] = lagrange[client] - alpha * (theta - x)
        results.append(theta)
    h = np.mean([lagrange[client] for client, _ in cohort], axis=0)
    return np.mean(results, axis=0) - h / alpha


def fedprox_round(
    gradient: Gradient, x: Vector, cohort: Sequence[tuple[int, Sequence[object]]], *, eta: float, mu: float
) -> Vector:
    """FedProx (Li et al. 2020); at μ = 0 FedAvg."""
    results = []
    for _, batches in cohort:
        w = x.copy()
        for batch in batches:
            w = w - eta * (gradient(w, batch) + mu * (w - x))
        results.append(w)
    return np.mean(results, axis=0)


@dataclasses.dataclass
class ReferenceHyperparameters:
    """The symbols of the equations; `K` None takes each client's own number of steps."""

    eta: float = 0.1
    decay: float = 1.0
    wd: float = 0.0
    max_norm: float = np.inf
    beta: float = 0.0
    lamb: float = 0.1
    rho: float = 0.1
    alpha: float = 0.1
    eta_g: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 0.01
    K: float | None = None


ASCENDING = ("fedsam", "mofedsam", "fedgamma", "fedspeed", "fedsmoo")
DUAL = ("feddyn", "fedspeed", "fedsmoo")
CONTROLLED = ("scaffold", "fedgamma")
CARRIED = ("fedcm", "mofedsam")


class ReferenceRun:
    """Server and all clients of one of the eleven algorithms in the form of the authors' program.

    One local step is G = s·g + b, clipped, x ← x − ηₜ·(G + ω·x). State: h, μ and c_i of every client, its last
    x_K in w; c, s, D, m and v of the server. What an algorithm does not use changes nothing in its x.
    """

    def __init__(
        self, method: str, gradient: Gradient, x: Vector, num_clients: int, hyper: ReferenceHyperparameters
    ) -> None:
        self.method, self.gradient, self.hyper, self.x, self.t = method, gradient, hyper, x.copy(), 0
        self.w = [x.copy() for _ in range(num_clients)]
        self.h, self.mu, self.c_i = ([np.zeros_like(x) for _ in range(num_clients)] for _ in range(3))
        self.c, self.s, self.D, self.m, self.v = (np.zeros_like(x) for _ in range(5))

    def round(self, cohort: Sequence[tuple[int, Sequence[object]]]) -> Vector:
        """One round over (client, batches); the clients' states change first, then the server uses them."""
        method, p, num_clients, eta = self.method, self.hyper, len(self.w), self.hyper.eta * self.hyper.decay**self.t
        moved, directions, change = [], [], np.zeros_like(self.x)
        for i, batches in cohort:
            x0 = self.x + p.beta * (self.x - self.w[i])
            self.w[i] = self.local(i, x0, batches, eta)
            U, K = self.w[i] - x0, len(batches) if p.K is None else p.K
            self.h[i] = self.h[i] + U
            new = self.c_i[i] - self.c - U / (K * eta)
            change = change + new - self.c_i[i]
            self.c_i[i] = new if method in CONTROLLED else self.c_i[i]
            moved.append(U)
            directions.append(-U / (K * eta))
        mean_U, members = np.mean(moved, axis=0), [i for i, _ in cohort]
        if method in DUAL:
            self.x = np.mean([self.w[i] for i in members], axis=0) + np.mean(self.h, axis=0)
        elif method == "fedadam":
            self.m = p.beta1 * self.m + (1 - p.beta1) * mean_U
            self.v = p.beta2 * self.v + (1 - p.beta2) * mean_U**2
            self.x = self.x + p.eta_g * self.m / (np.sqrt(self.v) + p.epsilon)
        else:
            self.x = self.x + p.eta_g * mean_U
        self.c = self.c + change / num_clients
        self.D = np.mean(directions, axis=0)
        mean_mu = np.mean([self.mu[i] for i in members], axis=0)
        self.s = p.rho * mean_mu / (np.linalg.norm(mean_mu) + 1e-7)
        self.t += 1
        return self.x

    def local(self, i: int, x0: Vector, batches: Sequence[object], eta: float) -> Vector:
        """x_K from x⁰; FedSMOO's μᵢ moves at every step."""
        x, p, scale, b, omega = x0.copy(), self.hyper, 1.0, 0.0, self.hyper.wd
        if self.method in (*DUAL, "fedprox"):
            omega = p.wd + p.lamb
            b = p.lamb * ((self.h[i] if self.method in DUAL else 0.0) - x0)
        if self.method in CARRIED:
            scale, b = p.alpha, (1 - p.alpha) * self.D
        if self.method in CONTROLLED:
            b = self.c - self.c_i[i]
        for batch in batches:
            G = scale * self.gradient(x + self.ascent(i, x, batch), batch) + b
            G = G * min(1.0, p.max_norm / (np.linalg.norm(G) + 1e-6))
            x = x - eta * (G + omega * x)
        return x

    def ascent(self, i: int, x: Vector, batch: object) -> Vector | float:
        """e = ρ·g₁/(‖g₁‖₂ + 1e-7); FedSMOO takes μᵢ + s from g₁, then moves μᵢ by e − s."""
        if self.method not in ASCENDING:
            return 0.0
        g1 = self.gradient(x, batch) - (self.mu[i] + self.s if self.method == "fedsmoo" else 0.0)
        e = self.hyper.rho * g1 / (np.linalg.norm(g1) + 1e-7)
        if self.method == "fedsmoo":
            self.mu[i] = self.mu[i] + e - self.s
        return e


def decoder_hidden(params: dict, config: object, tokens: Sequence[int], num_layers: int | None = None) -> np.ndarray:
    """Hidden states [T, D] of a decoder after its first layers, token by token and head by head, in float64."""
    embedding = np.asarray(params["embedding"], np.float64)
    x = embedding[np.asarray(tokens)] * np.sqrt(config.width)
    for layer in params["layers"][:num_layers]:
        p = {name: np.asarray(leaf, np.float64) for part in ("attention", "mlp") for name, leaf in layer[part].items()}
        x = x + attention_block(p, config, rms_norm(x, layer["attention_norm"]["scale"], config.block.epsilon))
        gate, up = (rms_norm(x, layer["mlp_norm"]["scale"], config.block.epsilon) @ w.T for w in p["gate_up"])
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p["down"].T
    return x


def decoder_logits(params: dict, config: object, tokens: Sequence[int], num_layers: int | None = None) -> np.ndarray:
    """Logits [T, V]: final norm and tied head over ``decoder_hidden``."""
    x = decoder_hidden(params, config, tokens, num_layers)
    return rms_norm(x, params["final_norm"]["scale"], config.block.epsilon) @ np.asarray(params["embedding"], float).T


def rms_norm(x: np.ndarray, scale: object, epsilon: float) -> np.ndarray:
    """x / √(mean x² + ε) · scale over the last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * np.asarray(scale, np.float64)


def attention_block(p: dict, config: object, x: np.ndarray) -> np.ndarray:
    """Grouped-query attention over x [T, D]: softmax(q·k/√h) of each head over all positions up to its own."""
    shared, heads = config.num_heads // config.num_kv_heads, []
    for head in range(config.num_heads):
        weights = p["qkv"][head // shared]
        query = [turned(weights[head % shared] @ row, t, config.attention.rotary.theta) for t, row in enumerate(x)]
        key = [turned(weights[shared] @ row, t, config.attention.rotary.theta) for t, row in enumerate(x)]
        value = x @ weights[shared + 1].T
        context = []
        for t in range(len(x)):
            scores = np.array([query[t] @ key[s] for s in range(t + 1)]) / np.sqrt(config.head_size)
            odds = np.exp(scores - scores.max())
            context.append(odds / odds.sum() @ value[: t + 1])
        heads.append(np.stack(context))
    return np.concatenate(heads, axis=1) @ p["out"].T


def turned(head: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Rotary position: component i and component i + h/2 are one complex number, turned by position·θ^(−2i/h)."""
    half = len(head) // 2
    complex_pairs = (head[:half] + 1j * head[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([complex_pairs.real, complex_pairs.imag])


def cross_entropy(logits: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """−log softmax(logits)[label] of each row, nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(labels)), np.asarray(labels)]
