"""FedNAR: gradient and weight decay are clipped together, so that decay does not grow against small
gradients.

    u <- g(y) + decay y;   u <- u min(1, bound / |u|);   y <- y - local(u)        each local step

Li et al., "FedNAR: Federated Optimization with Normalized Annealing Regularization", NeurIPS 2023. Both
numbers may be functions of the round, such as the paper's annealed decay: `decay=lambda round: 0.1 *
0.99**round`.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fednar(models.linear(features=3), decay=0.1, bound=1.0, local=optax.sgd(0.1))
"""

from typing import Any

import optax

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import check_optimizer
from fedjax_core.task import Task
from fedjax_core.types import known


@scheduled("task", "decay", "bound", "local", "server")
def fednar(
    task: Task, decay: float, bound: float, local: optax.GradientTransformation, **rest: Any
) -> Algorithm:
    """`fedavg` with weight decay `decay` >= 0, clipped with the gradient to norm `bound` > 0; the other
    arguments are fedavg's."""
    if known(decay, bound) and (decay < 0 or bound <= 0):
        raise ValueError(f"fednar needs decay >= 0 and bound > 0, got decay={decay}, bound={bound}")
    together = optax.chain(optax.add_decayed_weights(decay), optax.clip_by_global_norm(bound))
    return fedavg(task, optax.chain(together, check_optimizer(local, "local")), **rest)
