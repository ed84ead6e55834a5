"""TERM: clients are weighted by the exponential of their loss, between the mean of all losses (t near 0) and
the largest (t large).

    exchange 1 (silent)    F_i = f_i(x)                              one pass; the loss stays with the client
    exchange 2             d_i = y_i - x                             local steps from y = x
    server                 x <- x + sum_i p_i exp(t F_i) d_i / sum_i p_i exp(t F_i),        p_i = w_i / sum_j w_j

which is a step down log(sum_i p_i exp(t F_i)) / t. The exponentials are relative to that number in the round
before.

Li, Beirami, Sanjabi and Smith, "Tilted Empirical Risk Minimization", ICLR 2021, between groups, which are the
clients.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = term(models.linear(features=3), tilt=1.0, local=optax.sgd(0.1))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, by_examples
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, keep, local_training, whole_loss
from fedjax_core.task import Task
from fedjax_core.types import Array, Params
from fedjax_core.work import ONCE

_MOST = 60.0  # an exponent, so that the sum of 1e10 of them is finite in float32


class Global(NamedTuple):
    """The model x, and t times the tilted loss of the last round, which exponents are relative to."""

    params: Params
    level: Array


@scheduled("task", "tilt", "local")
def term(
    task: Task,
    tilt: float,
    local: optax.GradientTransformation,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedAvg of tilted losses: a `tilt` above 0 favours clients with large losses, below 0 those with small
    ones; 0 is FedAvg."""
    begin, step = local_training(task, local, start=lambda message, own: message.params)

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        factor = jnp.exp(jnp.clip(tilt * carry.own - message.level, -_MOST, _MOST))
        return Report(
            tree.scale(factor, tree.sub(carry.params, message.params)),
            weighting(seen),
            carry.own,
            stats={"factor": factor},
        )

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        factor = jnp.sum(reports.each.weight * reports.each.stats["factor"]) / jnp.maximum(
            reports.weight, 1e-30
        )
        factor = jnp.maximum(factor, 1e-30)
        return Global(
            tree.add(server.params, tree.scale(1 / factor, reports.value)), server.level + jnp.log(factor)
        )

    look = whole_loss(task, lambda message, own, loss, seen: keep(loss), at=lambda message: message.params)
    exchanges = (
        Exchange(lambda server: server, look, None, work=ONCE),
        Exchange(lambda server: server, Client(begin, step, finish), update),
    )
    return Algorithm(
        task,
        task.init,
        lambda params: Global(params, jnp.float32(0)),
        lambda params: jnp.float32(0),
        exchanges,
    )
