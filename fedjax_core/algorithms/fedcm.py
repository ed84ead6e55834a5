"""FedCM: every local step goes partly along the mean direction of all clients in the last round.

    y <- y - lr (alpha g(y) + (1 - alpha) m)           T_i local steps from y = x
    x <- x + server_lr mean(y_i - x),                  m <- -mean(y_i - x) / (lr mean T_i)

Xu et al., "FedCM: Federated Learning with Client-level Momentum", 2021, algorithm 1. Clients send no more
than in FedAvg.

>>> from fedjax_core import models
>>> algorithm = fedcm(models.linear(features=3), lr=0.1, alpha=0.1)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    Report,
    Seen,
    by_examples,
    nothing,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Params, known


class Global(NamedTuple):
    """The model x, and the mean local step of the last round, m."""

    params: Params
    momentum: Params


@scheduled("task", "lr", "alpha", "server_lr")
def fedcm(
    task: Task,
    lr: float,
    alpha: float = 0.1,
    server_lr: float = 1.0,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedCM with local step size `lr`; `alpha`, in (0, 1], is the weight of the client's own gradient, and 1
    is FedAvg."""
    if known(lr, alpha) and not (lr > 0 and 0 < alpha <= 1):
        raise ValueError(f"fedcm needs lr > 0 and 0 < alpha <= 1, got lr={lr}, alpha={alpha}")
    begin, step = local_training(
        task,
        optax.sgd(lr),
        start=lambda message, own: message.params,
        correct=lambda grads, point: jax.tree.map(
            lambda g, m: alpha * g + (1 - alpha) * m, grads, point.message.momentum
        ),
    )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        return Report(
            tree.sub(carry.params, message.params), weighting(seen), own=(), stats={"steps": seen.steps}
        )

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        steps = jnp.sum(reports.each.weight * reports.each.stats["steps"]) / jnp.maximum(
            reports.weight, 1e-30
        )
        params = tree.add(server.params, tree.scale(server_lr, reports.value))
        return Global(params, tree.scale(-1 / (lr * jnp.maximum(steps, 1)), reports.value))

    exchange = Exchange(lambda server: server, Client(begin, step, finish), update)
    return Algorithm(
        task, task.init, lambda params: Global(params, tree.zeros_like(params)), nothing, (exchange,)
    )
