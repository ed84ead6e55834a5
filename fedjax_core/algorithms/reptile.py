"""Reptile: the server moves part of the way to the clients' models, towards a point from which a client gets
far in a few steps.

    y <- y - local(g(y))                 local steps from y = x
    x <- x + rate mean(y_i - x)          clients count alike

Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, algorithm 2. `finetune` has each
client take such steps.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = reptile(models.linear(features=3), rate=0.5, local=optax.sgd(0.1))
"""

import optax

from fedjax_core.algorithms.base import Algorithm, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.task import Task


@scheduled("task", "rate", "local")
def reptile(task: Task, rate: float, local: optax.GradientTransformation) -> Algorithm:
    """`fedavg` with clients weighted alike and the server's step `rate`; `rate=lambda round: 1 - round / 100`
    anneals it."""
    return fedavg(task, local, server=optax.sgd(rate), weighting=uniform)
