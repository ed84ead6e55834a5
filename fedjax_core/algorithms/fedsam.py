"""FedSAM: local steps with the gradient taken a little uphill, so that clients end in flat minima.

    y <- y - local(g(y + rho g(y) / |g(y)|))        each local step, both g on the same batch

Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022, algorithm 1.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedsam(models.linear(features=3), rho=0.05, local=optax.sgd(0.1))
"""

from typing import Any

import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, gradient
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Gradient
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Batch, Key, Params, known


@scheduled("task", "rho", "local", "server")
def fedsam(task: Task, rho: float, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """`fedavg` with the gradient at the largest loss within `rho` >= 0, to first order; the other arguments
    are fedavg's.

    The metric `loss` is that at the model itself. A step costs two gradients.
    """
    if known(rho) and rho < 0:
        raise ValueError(
            f"rho must be at least 0, got {rho}: it is the radius in which the largest loss is looked for"
        )
    return fedavg(task, local, gradient=uphill(rho), **rest)


def uphill(rho: float) -> Gradient:
    """A `gradient=` at the point of the largest loss within `rho`, to first order, with the metrics of the
    model itself."""

    def gradient_there(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
        grads, metrics = gradient(task, params, batch, key)
        there = tree.add(params, tree.scale(rho / jnp.maximum(tree.norm(grads), 1e-12), grads))
        return gradient(task, there, batch, key)[0], metrics

    return gradient_there
