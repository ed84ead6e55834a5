"""D-PSGD, without a server: each client has a model of its own, and takes a weighted mean of its neighbours'
models.

    x_i <- sum_j W_ij x_j + (y_i - x_i),     y_i after local steps from x_i

W is a mixing matrix: W_ij > 0 where i and j are joined, rows and columns sum to 1. With one local step and
all W_ij = 1 / N all have the model of parallel SGD. Models are closer to their mean, the larger the gap
between 1 and the second largest |eigenvalue| of W.

The state has all models (`state.server.models`, [N, ...]); `state.params` is their mean. A client that takes
no part in a round mixes all the same.

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized
Parallel Stochastic Gradient Descent", NeurIPS 2017, algorithm 1. Weights of a graph by Xiao and Boyd, "Fast
linear iterations for distributed averaging", 2004.

>>> import optax
>>> from fedjax_core import models
>>> ring = metropolis([(0, 1), (1, 2), (2, 3), (3, 0)])
>>> ring[0].round(3).tolist()
[0.333, 0.333, 0.0, 0.333]
>>> algorithm = gossip(models.linear(features=3), optax.sgd(0.1), ring)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    Report,
    Seen,
    Told,
    nothing,
    uniform,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Params


class Global(NamedTuple):
    """All clients' models, and their mean."""

    params: Params
    models: Params  # leaves [N, ...]


@scheduled("task", "local")
def gossip(task: Task, local: optax.GradientTransformation, mixing: Any) -> Algorithm:
    """Decentralised training of N clients by the matrix `mixing` [N, N], whose rows and columns sum to 1."""
    matrix = np.asarray(mixing, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(
            f"mixing must be a matrix [N, N], a row and a column for each client, got shape {matrix.shape}"
        )
    sums = np.concatenate([matrix.sum(axis=0), matrix.sum(axis=1)])
    if not np.allclose(sums, 1, atol=1e-6):
        raise ValueError(
            f"rows and columns of mixing must sum to 1, so that the mean of all models stays, and one sums to "
            f"{sums[np.nanargmax(np.abs(sums - 1))]:g}: make it with fc.algorithms.metropolis(edges)"
        )
    weights = matrix.astype(np.float32)
    begin, step = local_training(task, local, start=lambda received, own: received.mine)

    def finish(received: Told, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, received.mine), uniform(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        position = reports.each.position

        def mix(models: Any, change: Any) -> Any:
            mixed = jnp.tensordot(jnp.asarray(weights, models.dtype), models, 1)
            return mixed.at[position].add(change, mode="drop")

        models = jax.tree.map(mix, server.models, reports.value)
        return Global(_mean(models), models)

    exchange = Exchange(
        lambda server: (),
        Client(begin, step, finish),
        update,
        reports="all",
        address=lambda server, positions: jax.tree.map(
            lambda x: x.at[positions].get(mode="clip"), server.models
        ),
    )

    def init(params: Params) -> Global:
        return Global(
            params, jax.tree.map(lambda x: jnp.broadcast_to(x, (len(matrix), *jnp.shape(x))), params)
        )

    return Algorithm(task, task.init, init, nothing, (exchange,))._replace(population=len(matrix))


def metropolis(edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """A mixing matrix [N, N] of an undirected graph: W_ij = 1 / (1 + the larger degree of i and j), the rest
    stays with i."""
    pairs = np.asarray(edges)
    if (
        pairs.ndim != 2
        or pairs.shape[1] != 2
        or pairs.dtype.kind not in "iu"
        or pairs.min() < 0
        or (pairs[:, 0] == pairs[:, 1]).any()
    ):
        raise ValueError(f"edges must be pairs of different clients, [(0, 1), (1, 2)], got {edges!r}")
    joined = np.zeros((pairs.max() + 1,) * 2, bool)
    joined[tuple(pairs.T)] = joined[tuple(pairs.T[::-1])] = True
    degree = joined.sum(axis=1)
    matrix = joined / (1 + np.maximum(degree[:, None], degree[None]))
    return matrix + np.diag(1 - matrix.sum(axis=1))


def _mean(models: Params) -> Params:
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), models)
