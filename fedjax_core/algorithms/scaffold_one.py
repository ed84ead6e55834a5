"""SCAFFOLD with option I: clients set their control variates to the gradient at the server's model, in one
more pass.

    c_i+ = grad f_i(x)                         over all examples of the client, before it trains
    y   <- y - lr (g(y) + c - c_i)             each local step, from y = x
    c_i <- c_i+,    c <- c + (|S| / N) mean(c_i+ - c_i)

It costs a pass over the data, and the control variates have less noise than those of option II (`scaffold`).
Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm
1.

>>> from fedjax_core import models
>>> algorithm = scaffold_one(models.linear(features=3), lr=0.1, population=100)
"""

from typing import Any, NamedTuple

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Exchange, Report, Seen
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import keep, whole_gradient
from fedjax_core.algorithms.scaffold import Change, Global, scaffold
from fedjax_core.task import Task
from fedjax_core.types import Batch, Carry, Key, Params
from fedjax_core.work import ONCE


class Own(NamedTuple):
    """A client's state: its control variate c_i, and the one that replaces it."""

    control: Params
    next: Params


class Training(NamedTuple):
    """A client's carry: that of option II, and its next control variate."""

    carry: Any
    next: Params


@scheduled("task", "lr", "server_lr")
def scaffold_one(task: Task, lr: float, population: int, server_lr: float = 1.0, **rest: Any) -> Algorithm:
    """`scaffold`, with its arguments, and control variates that are gradients over all of a client's
    examples."""
    second = scaffold(task, lr, population, server_lr, **rest)
    (train,) = second.exchanges
    client = train.client

    def renew(message: Global, own: Own, grads: Params, seen: Seen) -> Report:
        return keep(Own(own.control, tree.like(grads, message.params)))

    def begin(message: Global, own: Own, key: Key) -> Training:
        return Training(client.begin(message, own.control, key), own.next)

    def step(message: Global, training: Training, batch: Batch, key: Key) -> tuple[Carry, dict[str, Any]]:
        carry, metrics = client.step(message, training.carry, batch, key)
        return training._replace(carry=carry), metrics

    def finish(message: Global, training: Training, seen: Seen) -> Report:
        report = client.finish(message, training.carry, seen)
        change = Change(report.update.params, tree.sub(training.next, training.carry.own))
        return report._replace(update=change, own=Own(training.next, training.next))

    find = Exchange(
        lambda server: server, whole_gradient(task, renew, at=lambda message: message.params), None, work=ONCE
    )
    exchanges = (find, train._replace(client=Client(begin, step, finish)))
    return second._replace(
        init_client=lambda params: Own(*[second.init_client(params)] * 2), exchanges=exchanges
    )
