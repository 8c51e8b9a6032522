"""FedSpeed in one page of NumPy (Sun et al., ICLR 2023, Algorithm 1), and FedAvg, with the papers' symbols.

Parameters are one vector x; clients, local steps and batches are Python loops. A cohort is a list of
(client, batches), batches is a list of (inputs, labels). `python -m tests.support.fedspeed_reference` trains both.
"""

import numpy as np


def fedavg_round(gradient, x, cohort, *, eta, mu=0.0):
    """FedAvg (McMahan et al., AISTATS 2017); with μ > 0 FedProx (Li et al., MLSys 2020)."""
    results = []
    for _, batches in cohort:
        xk = x.copy()
        for batch in batches:
            xk = xk - eta * (gradient(xk, batch) + mu * (xk - x))
        results.append(xk)
    return np.mean(results, axis=0)


def fedspeed_round(
    gradient, x, duals, cohort, *, eta, lam, rho, alpha, normalise=False, over_population=False
):  # fmt: skip
    """One round of FedSpeed: return the next x, and update `duals` (ĝᵢ of every client, all zero at first) in place.

    `normalise`: ascent step of length ρ, as in the authors' code. `over_population`: the server averages the duals of
    all clients instead of the cohort's, as in the authors' experiments.
    """
    sent = []
    for client, batches in cohort:
        xk = x.copy()
        for batch in batches:
            g1 = gradient(xk, batch)
            e = rho * g1 / (np.linalg.norm(g1) + 1e-7) if normalise else rho * g1  # ascent step
            g2 = gradient(xk + e, batch)
            g = (1 - alpha) * g1 + alpha * g2  # merged quasi-gradient
            xk = xk - eta * (g - duals[client] + (xk - x) / lam)  # prox-correction and prox-term
        duals[client] = duals[client] - (xk - x) / lam
        sent.append(xk if over_population else xk - lam * duals[client])
    return np.mean(sent, axis=0) - (lam * np.mean(duals, axis=0) if over_population else 0.0)


def softmax_regression_gradient(num_classes):
    """Return `gradient(x, batch)` of the mean cross-entropy of the logits inputs·W + b; the vector x is (b, W)."""

    def gradient(x, batch):
        inputs, labels = batch
        error = (probabilities(x, inputs, num_classes) - np.eye(num_classes)[labels]) / len(labels)
        return np.concatenate([error.sum(axis=0), (inputs.T @ error).ravel()])

    return gradient


def probabilities(x, inputs, num_classes):
    """softmax(inputs·W + b), [n, num_classes]."""
    logits = inputs @ x[num_classes:].reshape(-1, num_classes) + x[:num_classes]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def train(method, rounds=40, clients=6, steps=5, classes=3):
    """Mean loss over all samples after every round; three of six clients per round, each with two of three classes."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, 4))
    labels = [generator.choice([client % classes, (client + 1) % classes], size=20) for client in range(clients)]
    inputs = [centres[y] + generator.normal(size=(20, 4)) for y in labels]
    everything, targets = np.concatenate(inputs), np.concatenate(labels)
    gradient, x = softmax_regression_gradient(classes), np.zeros(classes * 5)
    duals, losses = [np.zeros_like(x) for _ in range(clients)], []
    for _ in range(rounds):
        cohort = []
        for client in generator.choice(clients, size=3, replace=False):
            rows = [generator.choice(20, size=10, replace=False) for _ in range(steps)]
            cohort.append((client, [(inputs[client][each], labels[client][each]) for each in rows]))
        if method == "fedavg":
            x = fedavg_round(gradient, x, cohort, eta=0.2)
        else:
            x = fedspeed_round(gradient, x, duals, cohort, eta=0.2, lam=10.0, rho=0.1, alpha=1.0, over_population=True)
        losses.append(-np.log(probabilities(x, everything, classes)[np.arange(len(targets)), targets]).mean())
    return losses


if __name__ == "__main__":
    for name in ("fedavg", "fedspeed"):
        print(name, *(f"{loss:.3f}" for loss in train(name)[4::5]))
