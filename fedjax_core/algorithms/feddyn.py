"""FedDyn: each client's loss gets a linear term that is updated every round, until its minimum is that of
all.

    y   <- y - local(g(y) - h_i + alpha (y - x))        local steps from y = x
    h_i <- h_i - alpha (y_i - x)                        stays with the client; tends to g_i at the optimum
    h   <- h - alpha / N sum_{i in S} (y_i - x)
    x   <- mean of y_i - h / alpha

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, algorithm 1. The fixed point is
the optimum even if local steps do not end at the minimum.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = feddyn(models.linear(features=3), alpha=0.1, local=optax.sgd(0.1), population=100)
"""

from typing import NamedTuple

import jax
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import At, Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Params, known


class Global(NamedTuple):
    """The model x, and the sum of the clients' drifts, h."""

    params: Params
    drift: Params


@scheduled("task", "alpha", "local")
def feddyn(task: Task, alpha: float, local: optax.GradientTransformation, population: int) -> Algorithm:
    """FedDyn of strength `alpha` for `population` clients, who count alike."""
    if known(alpha, population) and (alpha <= 0 or population < 1):
        raise ValueError(
            f"feddyn needs alpha > 0 (it divides by it) and population >= 1, got alpha={alpha}, population={population}"
        )

    def tilted(grads: Params, point: At) -> Params:
        return jax.tree.map(
            lambda g, h, y, x: g - h + alpha * (y - x), grads, point.own, point.params, point.message
        )

    begin, step = local_training(task, local, correct=tilted)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        moved = tree.sub(carry.params, params)
        return Report(moved, uniform(seen), own=tree.sub(carry.own, tree.scale(alpha, moved)))

    def update(server: Global, reports: Aggregate) -> Global:
        drift = tree.sub(server.drift, tree.scale(alpha * reports.clients / population, reports.value))
        mean = tree.add(server.params, reports.value)
        return Global(tree.sub(mean, tree.scale(1 / alpha, drift)), drift)

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    begun = Algorithm(
        task, task.init, lambda params: Global(params, tree.zeros_like(params)), tree.zeros_like, (exchange,)
    )
    return begun._replace(population=population)
