"""FedDANE: each client minimises its loss with its gradient at x replaced by the mean one, and a pull towards
x.

    exchange 1    g_i = grad f_i(x),  g = mean of g_i
    exchange 2    y <- y - local(g(y) - g_i + g + mu (y - x))    local steps from y = x
    server        x <- mean of y_i

Li et al., "FedDANE: A Federated Newton-Type Method", 2020, algorithm 2; the same clients take part in both
exchanges.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = feddane(models.linear(features=3), mu=0.1, local=optax.sgd(0.1))
"""

from typing import Any

import optax

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedlin import fedlin
from fedjax_core.algorithms.fedprox import add_proximal
from fedjax_core.algorithms.local_training import check_optimizer
from fedjax_core.task import Task
from fedjax_core.types import known


@scheduled("task", "mu", "local")
def feddane(task: Task, mu: float, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """`fedlin` with a pull of strength `mu` >= 0 in the local gradients; the other arguments are fedlin's."""
    if known(mu) and mu < 0:
        raise ValueError(f"mu must be at least 0, got {mu}: a negative pull pushes clients apart")
    return fedlin(task, optax.chain(add_proximal(mu), check_optimizer(local, "local")), **rest)
