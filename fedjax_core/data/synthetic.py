"""The synthetic(a, b) populations of FedProx: every client has its own linear model and its own distribution
of inputs.

    u_k ~ N(0, a)    B_k ~ N(0, b)                     a and b are standard deviations, as in the published generator
    W_k, c_k ~ N(u_k, 1)    v_k ~ N(B_k, 1)            entry by entry
    x ~ N(v_k, diag(j^-1.2)), j = 1..features          y = argmax(W_k' x + c_k)
    n_k = int(lognormal(4, 2)) + 50

b is how far apart the clients' data lie. a is meant as how far apart their models are, but as published it
moves the scores of all classes by the same u_k * (sum(x) + 1) and so never changes a label: models differ by
the unit variance of W_k and c_k, whatever a is.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. The published generator has no
seed; here client k is drawn by (seed, k), so that a larger population begins with the smaller one's clients.

>>> clients = synthetic(1, 1, clients=30, seed=0)
>>> len(clients), clients[0]["x"].shape[1], int(clients.sizes.min()) >= 50
(30, 60, True)
"""

from typing import Any

import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.data import host_random
from fedjax_core.data.clients import Clients


def synthetic(
    a: float,
    b: float,
    *,
    clients: int = 30,
    seed: int = 0,
    features: int = 60,
    classes: int = 10,
    iid: bool = False,
    sizes: Any = None,
) -> Clients:
    """Clients with columns x [n, features] float32 and y [n] int32.

    `iid=True` (with a = b = 0): one W and c for all, drawn from N(0, 1), and v_k = 0. `sizes` [clients]
    replaces the drawn sizes."""
    at_least(1, clients=clients, features=features)
    at_least(2, classes=classes)
    host_random.check_seed(seed)
    if not (0 <= a < np.inf and 0 <= b < np.inf):
        raise ValueError(
            f"a and b are standard deviations and must be finite and not negative, got a={a} and b={b}"
        )
    if iid and (a or b):
        raise ValueError(
            f"iid=True means that clients do not differ, a = b = 0, but got a={a} and b={b}; use synthetic(0, 0, iid=True)"
        )
    if sizes is not None:
        sizes = _sizes(sizes, clients)
    # an address that no client has
    shared = _model(host_random.generator(host_random.SYNTHETIC, seed, 2**64 - 1), 0.0, features, classes)
    columns = []
    for k in range(clients):
        rng = host_random.generator(host_random.SYNTHETIC, seed, k)
        drawn = int(rng.lognormal(4, 2)) + 50
        center, shift = rng.normal(0, a), rng.normal(0, b)
        weights, bias = shared if iid else _model(rng, center, features, classes)
        mean = np.zeros(features) if iid else rng.normal(shift, 1, features)
        spread = np.arange(1, features + 1) ** -0.6  # the square root of the variance
        x = mean + spread * rng.standard_normal((drawn if sizes is None else sizes[k], features))
        columns.append({"x": x.astype(np.float32), "y": (x @ weights + bias).argmax(axis=1).astype(np.int32)})
    return Clients.from_list(columns)


def _model(
    rng: np.random.Generator, center: float, features: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(center, 1, (features, classes)), rng.normal(center, 1, classes)


def _sizes(sizes: Any, clients: int) -> np.ndarray:
    sizes = np.asarray(sizes)
    if sizes.shape != (clients,) or not np.issubdtype(sizes.dtype, np.integer) or sizes.min() < 0:
        raise ValueError(
            f"sizes must be {clients} whole numbers, one a client and not negative, got {sizes.dtype}{list(sizes.shape)}"
        )
    return sizes
