"""FedExP: the server takes a longer step where clients' changes disagree, as their mean is then short.

    y <- y - local(g(y))                                             local steps from y = x;  d_i = y_i - x
    x <- x + max(1, mean |d_i|^2 / (2 (|mean d_i|^2 + eps))) mean d_i

Jhunjhunwala, Wang and Joshi, "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023,
algorithm 1. The server reads the |d_i|^2 client by client, computed before any stage.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedexp(models.linear(features=3), local=optax.sgd(0.1))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, nothing, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Params


class Global(NamedTuple):
    """The model x."""

    params: Params


@scheduled("task", "local", "eps")
def fedexp(
    task: Task,
    local: optax.GradientTransformation,
    eps: float = 1e-3,
    *,
    weighting: Callable[[Seen], Array] = uniform,
) -> Algorithm:
    """FedAvg with an extrapolated step; clients count alike, as in the paper, or as `weighting` says."""
    begin, step = local_training(task, local)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        moved = tree.sub(carry.params, params)
        return Report(moved, weighting(seen), own=(), stats={"moved": jnp.square(tree.norm(moved))})

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        squares = jnp.sum(reports.each.weight * reports.each.stats["moved"]) / jnp.maximum(
            reports.weight, 1e-30
        )
        shorter = jnp.maximum(2 * (jnp.square(tree.norm(reports.value)) + eps), 1e-30)
        return Global(tree.add(server.params, tree.scale(jnp.maximum(1, squares / shorter), reports.value)))

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    return Algorithm(task, task.init, Global, nothing, (exchange,))
