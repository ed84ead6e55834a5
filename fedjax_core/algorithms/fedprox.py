"""FedProx: FedAvg with a pull towards the model that the client began with, which bounds how far unequal
clients drift apart.

    local loss  f_i(y) + mu/2 |y - x|^2,   so the gradient gains  mu (y - x)

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedprox(models.linear(features=3), mu=0.1, local=optax.sgd(0.1))
"""

from typing import Any

import jax
import optax

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import check_optimizer
from fedjax_core.task import Task
from fedjax_core.types import known


def add_proximal(mu: float) -> optax.GradientTransformation:
    """Adds mu * (params - start) to the gradient; `start` is the params given to `init`."""

    def update(grads: Any, start: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda g, p, s: g + mu * (p - s), grads, params, start), start

    return optax.GradientTransformation(lambda params: params, update)


@scheduled("task", "mu", "local", "server")
def fedprox(task: Task, mu: float, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """`fedavg` with a pull of strength `mu` >= 0 in the local gradients; the other arguments are fedavg's."""
    if known(mu) and mu < 0:
        raise ValueError(f"mu must be at least 0, got {mu}: a negative pull pushes clients apart")
    return fedavg(task, optax.chain(add_proximal(mu), check_optimizer(local, "local")), **rest)
