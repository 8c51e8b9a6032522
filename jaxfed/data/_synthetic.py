"""Synthetic(α, β): clients whose models and inputs differ by two numbers."""

import numpy as np

from jaxfed.core.checks import check_range

FEATURES, CLASSES = 60, 10


def synthetic(
    alpha: float, beta: float, num_clients: int = 30, seed: int = 0, iid: bool = False
) -> list[dict[str, np.ndarray]]:
    """Draw the clients of Synthetic(α, β), a classification of 60 features into 10 classes.

    Client k has its own linear model and its own inputs; their numbers of samples follow a power law:

        u_k ~ N(0, α²)      W_k, b_k ~ N(u_k, 1)                        y = argmax(W_k·x + b_k)
        B_k ~ N(0, β²)      v_k ~ N(B_k, 1)     x ~ N(v_k, Σ)           Σ = diag(j^−1.2), j = 1 … 60
        n_k = 50 + ⌊exp(N(4, 2²))⌋

    Args:
        alpha: α ≥ 0, how much models differ.
        beta: β ≥ 0, how much inputs differ.
        num_clients: N.
        seed: of the generator.
        iid: one model for all clients, and inputs around 0.

    Returns:
        For every client "x" float32 [n_k, 60] and "y" int32 [n_k], for `client_data`.

    Raises:
        ValueError: a number out of range.

    Source: Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020, appendix C.1; deviations
    α and β as in the authors' program.
    """
    check_range("alpha", alpha, least=0.0)
    check_range("beta", beta, least=0.0)
    check_range("num_clients", num_clients, least=1, whole=True)
    generator = np.random.default_rng(seed)
    sizes = 50 + np.minimum(generator.lognormal(4.0, 2.0, num_clients), 1e5).astype(int)
    scale = np.sqrt(np.arange(1, FEATURES + 1) ** -1.2)
    shared = generator.normal(size=(FEATURES + 1, CLASSES))
    clients = []
    for size in sizes:
        model = shared if iid else generator.normal(generator.normal(0.0, alpha), 1.0, (FEATURES + 1, CLASSES))
        middle = np.zeros(FEATURES) if iid else generator.normal(generator.normal(0.0, beta), 1.0, FEATURES)
        x = generator.normal(middle, scale, (size, FEATURES))
        y = np.argmax(x @ model[:-1] + model[-1], axis=1)
        clients.append({"x": x.astype(np.float32), "y": y.astype(np.int32)})
    return clients
