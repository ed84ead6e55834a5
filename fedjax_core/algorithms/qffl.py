"""q-FFL by q-FedAvg: clients with a larger loss count more, so that accuracy is spread more evenly.

    exchange 1 (silent)    F_i = f_i(x)                             one pass; the loss stays with the client
    exchange 2             d_i = y_i - x,                           local steps from y = x
                           h_i = q F_i^(q-1) |d_i / lr|^2 + F_i^q / lr
    server                 x <- x + mean(F_i^q d_i / lr) / mean(h_i)

Li, Sanjabi, Beirami and Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2. The
server reads the h_i client by client.

>>> from fedjax_core import models
>>> algorithm = qffl(models.linear(features=3), lr=0.1, q=1.0)
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, keep, local_training, whole_loss
from fedjax_core.task import Task
from fedjax_core.types import Params, known
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x."""

    params: Params


@scheduled("task", "lr", "q")
def qffl(task: Task, lr: float, q: float) -> Algorithm:
    """q-FedAvg with local step size `lr`; q = 0 is FedAvg with clients weighted alike, and a larger `q` gives
    more weight to clients with large losses."""
    if known(lr, q) and (lr <= 0 or q < 0):
        raise ValueError(f"qffl needs lr > 0 (it divides by it) and q >= 0, got lr={lr}, q={q}")
    begin, step = local_training(task, optax.sgd(lr))

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        loss = jnp.maximum(carry.own, 1e-10)
        direction = tree.scale(1 / lr, tree.sub(carry.params, params))
        curvature = q * loss ** (q - 1) * jnp.square(tree.norm(direction)) + loss**q / lr
        return Report(
            tree.scale(loss**q, direction), uniform(seen), own=carry.own, stats={"curvature": curvature}
        )

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        curvature = jnp.sum(reports.each.weight * reports.each.stats["curvature"]) / jnp.maximum(
            reports.weight, 1e-30
        )
        return Global(tree.add(server.params, tree.scale(1 / jnp.maximum(curvature, 1e-30), reports.value)))

    find = Exchange(
        lambda server: server.params,
        whole_loss(task, lambda params, own, loss, seen: keep(loss)),
        None,
        work=ONCE,
    )
    train = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    return Algorithm(task, task.init, Global, lambda params: jnp.float32(0), (find, train))
