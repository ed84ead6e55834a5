"""FedLin: local steps with the client's own gradient at x replaced by the mean gradient of all.

    exchange 1    g_i = grad f_i(x),  g = mean of g_i            each client passes once over its data, and keeps g_i
    exchange 2    y <- y - local(g(y) - g_i + g)                 local steps from y = x
    server        x <- mean of y_i

Mitra et al., "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse Gradients",
NeurIPS 2021, algorithm 1 without compression. There a client with more steps takes smaller ones; here give
all clients the same number (`steps=`).

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedlin(models.linear(features=3), local=optax.sgd(0.1))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, by_examples
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import At, Local, local_training, whole_gradient
from fedjax_core.task import Task
from fedjax_core.types import Array, Own, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x, and this round's mean gradient g at x."""

    params: Params
    gradient: Params


@scheduled("task", "local")
def fedlin(
    task: Task, local: optax.GradientTransformation, *, weighting: Callable[[Seen], Array] = by_examples
) -> Algorithm:
    """FedLin; clients count by their examples, or as `weighting` says."""

    def report(params: Params, own: Own, grads: Params, seen: Seen) -> Report:
        return Report(grads, weighting(seen), own=tree.like(grads, params))

    def corrected(grads: Params, point: At) -> Params:
        return jax.tree.map(
            lambda here, own, mean: here - own + mean, grads, point.own, point.message.gradient
        )

    begin, step = local_training(task, local, start=lambda message, own: message.params, correct=corrected)

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, message.params), weighting(seen), own=carry.own)

    def update(server: Global, reports: Aggregate) -> Global:
        return server._replace(params=tree.add(server.params, reports.value))

    find = Exchange(
        lambda server: server.params,
        whole_gradient(task, report),
        lambda server, reports: server._replace(gradient=reports.value),
        work=ONCE,
    )
    train = Exchange(lambda server: server, Client(begin, step, finish), update)
    return Algorithm(
        task,
        task.init,
        lambda params: Global(params, tree.zeros_like(params)),
        tree.zeros_like,
        (find, train),
    )
