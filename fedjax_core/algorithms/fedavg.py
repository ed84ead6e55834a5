"""FedAvg and FedOpt: clients take local steps from the global model; the server treats their mean change as a
gradient.

    y <- y - local(g(y))        each local step, from y = x
    x <- x - server(-sum_i w_i (y_i - x) / sum_i w_i)

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017;
with another server optimiser, Reddi et al., "Adaptive Federated Optimization", ICLR 2021
(`fedjax_core.algorithms.fedopt` has its rules).

>>> import optax
>>> from fedjax_core import models
>>> task = models.linear(features=3)
>>> averaging = fedavg(task, local=optax.sgd(0.1))
>>> with_momentum = fedavg(task, local=optax.sgd(0.1), server=optax.sgd(1.0, momentum=0.9))
"""

from collections.abc import Callable
from typing import NamedTuple

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
    gradient,
    nothing,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Gradient, Local, local_training, server_step
from fedjax_core.task import Task
from fedjax_core.types import Array, Params


class Global(NamedTuple):
    """The model, and the server optimiser's state."""

    params: Params
    opt: optax.OptState


@scheduled("task", "local", "server")
def fedavg(
    task: Task,
    local: optax.GradientTransformation,
    server: optax.GradientTransformation | None = None,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
    gradient: Gradient = gradient,
) -> Algorithm:
    """Federated averaging of local steps by `local`; `server` (default `optax.sgd(1.0)`: plain averaging)
    gets the mean change, negated.

    Clients begin `local` anew in every round, so a schedule within it counts a client's steps of one round.
    For a learning rate by rounds give `local=lambda round: optax.sgd(0.1 * 0.9**round)`, with rounds from 0;
    `server` and `task` may be such functions too. `weighting` is a client's weight: `by_examples` (default)
    or `uniform`. `gradient(task, params, batch, key)` gives (a replacement for the plain gradient, the step's
    metrics). In an empty round, in which nobody reported, the server takes no step, and its momentum stays as
    it is.
    """
    begin, step = local_training(task, local, gradient=gradient)
    server = optax.sgd(1.0) if server is None else server
    move = server_step(server, averaged=task.statistics.names)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, params), weighting(seen), own=())

    def update(state: Global, reports: Aggregate) -> Global:
        return Global(*move(state.params, state.opt, reports.value))

    exchange = Exchange(
        broadcast=lambda state: state.params, client=Client(begin, step, finish), update=update
    )
    return Algorithm(
        task, task.init, lambda params: Global(params, server.init(params)), nothing, (exchange,)
    )
