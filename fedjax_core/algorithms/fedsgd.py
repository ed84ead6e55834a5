"""FedSGD: each client sends the gradient of all its examples, and the server takes one step down their mean.

    x <- x - server(sum_i w_i grad f_i(x) / sum_i w_i)

Weighted by examples that is the gradient of all examples together, so the run is gradient descent on the
pooled data.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
section 2.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedsgd(models.linear(features=3), server=optax.sgd(0.1))
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Exchange, Report, Seen, by_examples, nothing
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import server_step, whole_gradient
from fedjax_core.task import Task
from fedjax_core.types import Array, Own, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model, and the server optimiser's state."""

    params: Params
    opt: optax.OptState


@scheduled("task", "server")
def fedsgd(
    task: Task, server: optax.GradientTransformation, *, weighting: Callable[[Seen], Array] = by_examples
) -> Algorithm:
    """Gradient descent by the optimiser `server`; a round is one step, and the run's epochs or steps have no
    effect."""
    move = server_step(server)

    def report(params: Params, own: Own, grads: Params, seen: Seen) -> Report:
        return Report(tree.scale(-1, grads), weighting(seen), own=())

    def update(state: Global, reports: Aggregate) -> Global:
        return Global(*move(state.params, state.opt, reports.value))

    exchange = Exchange(lambda state: state.params, whole_gradient(task, report), update, work=ONCE)
    return Algorithm(
        task, task.init, lambda params: Global(params, server.init(params)), nothing, (exchange,)
    )
