"""FedAsync: each model that arrives is mixed into the server's, with less weight the older the model that it
began from.

    x <- (1 - alpha d(s)) x + alpha d(s) y_i        s = version now - version that y_i began from

A client reports its model and a 1, both of which the buffer damps; so the server knows d(s), and the buffer
needs no other rule:

    AsynchronousSimulator(compose(fedasync(...)), clients, Buffer(size=1, damping=polynomial(0.5)), delays=...)

With a larger buffer the models of a step are averaged first. Without delays, and alpha = 1, it is FedAvg.
FedBuff adds changes where FedAsync mixes models: old changes move the server on, old models draw it back.

Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", 2019, algorithm 1; its pull towards the client's
first model is `local=optax.chain(fc.algorithms.add_proximal(rho), optax.sgd(lr))`.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedasync(models.linear(features=3), optax.sgd(0.1), alpha=0.6)
>>> [round(polynomial(0.5)(s), 2) for s in (0, 3)], [round(hinge(10, 4)(s), 2) for s in (4, 6)]
([1.0, 0.5], [1.0, 0.05])
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
from fedjax_core.types import Array, Params, known


class Global(NamedTuple):
    """The model x."""

    params: Params


class Model(NamedTuple):
    """A client's model, and a 1 that is damped as the model is."""

    params: Params
    one: Array


@scheduled("task", "local", "alpha")
def fedasync(
    task: Task,
    local: optax.GradientTransformation,
    alpha: float = 0.6,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedAsync that mixes by `alpha`, above 0 and at most 1. Stages that bound or compress changes would get
    whole models here."""
    if known(alpha) and not 0 < alpha <= 1:
        raise ValueError(
            f"alpha must be above 0 and at most 1, got {alpha}: it is the share of a model that is new"
        )
    begin, step = local_training(task, local)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return Report(Model(carry.params, jnp.float32(1)), weighting(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        new: Model = reports.value
        towards = tree.sub(new.params, tree.scale(new.one, server.params))
        return Global(tree.add(server.params, tree.scale(alpha, towards)))

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    return Algorithm(task, task.init, Global, nothing, (exchange,))


class polynomial(NamedTuple):
    """d(s) = (1 + s)^-a."""

    a: float

    def __call__(self, staleness: int) -> float:
        """The factor of a model that is `staleness` versions old."""
        return float((1 + staleness) ** -self.a)


class hinge(NamedTuple):
    """d(s) = 1 up to b, then 1 / (a (s - b) + 1)."""

    a: float
    b: float

    def __call__(self, staleness: int) -> float:
        """The factor of a model that is `staleness` versions old."""
        return 1.0 if staleness <= self.b else 1 / (self.a * (staleness - self.b) + 1)
