"""All eleven algorithms in NumPy, in the form of the FedSpeed authors' program, with the papers' symbols.

They share nothing with `jaxfed`: parameters are one vector, clients and steps are Python loops. FedSpeed itself, in the
form of the paper, is on one page: `tests/support/fedspeed_reference.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Vector = np.ndarray
Gradient = Callable[[Vector, object], Vector]
"""`gradient(x, batch)` of one mini-batch."""


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
