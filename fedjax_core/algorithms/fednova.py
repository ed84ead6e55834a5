"""FedNova: each client's change is divided by its number of local steps, so that no client counts for taking
more of them.

    y <- y - lr g(y)                                  T_i local steps, from y = x
    x <- x + (sum_i p_i T_i) sum_i p_i (y_i - x) / T_i,        p_i = w_i / sum_j w_j

The server reads the numbers of the first sum client by client (`Report.stats`): a clip or a quantiser in the
uplink acts on the directions only.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS
2020, equation 8, for local SGD without momentum.

>>> from fedjax_core import models
>>> algorithm = fednova(models.linear(features=3), lr=0.1)
"""

from collections.abc import Callable
from typing import NamedTuple

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
from fedjax_core.types import Array, Params


class Global(NamedTuple):
    """The model x."""

    params: Params


@scheduled("task", "lr")
def fednova(task: Task, lr: float, *, weighting: Callable[[Seen], Array] = by_examples) -> Algorithm:
    """FedNova with local step size `lr`; clients count by their examples, or as `weighting` says, whatever
    their numbers of steps."""
    begin, step = local_training(task, optax.sgd(lr))

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        direction = tree.scale(1 / seen.steps, tree.sub(carry.params, params))
        return Report(direction, weighting(seen), own=(), stats={"steps": seen.steps})

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        steps = jnp.sum(reports.each.weight * reports.each.stats["steps"]) / jnp.maximum(
            reports.weight, 1e-30
        )
        return Global(tree.add(server.params, tree.scale(steps, reports.value)))

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    return Algorithm(task, task.init, Global, nothing, (exchange,))
