"""FedVARP: an absent client is represented by its last change, so that random participation adds less
variance.

    d_i = y_i - x                                           local steps from y = x
    x   <- x + server_lr (m + mean_{i in S}(d_i - m_i))     with m the mean of m_i over all N clients
    m   <- m + |S| / N mean_{i in S}(d_i - m_i),            m_i <- d_i

Jhunjhunwala et al., "FedVARP: Tackling the Variance Due to Partial Client Participation in Federated
Learning", UAI 2022, algorithm 1. There the server keeps every m_i; here each client keeps its own, and sends
d_i - m_i.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedvarp(models.linear(features=3), local=optax.sgd(0.1), population=100)
"""

from typing import NamedTuple

import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Params


class Global(NamedTuple):
    """The model x, and the mean of all clients' last changes, m."""

    params: Params
    memory: Params


@scheduled("task", "local", "server_lr")
def fedvarp(
    task: Task, local: optax.GradientTransformation, population: int, server_lr: float = 1.0
) -> Algorithm:
    """FedVARP for `population` clients, who count alike. The last change of a client that never took part is
    zero."""
    if population < 1:
        raise ValueError(f"fedvarp needs population >= 1, got {population}")
    begin, step = local_training(task, local)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        moved = tree.sub(carry.params, params)
        return Report(tree.sub(moved, carry.own), uniform(seen), own=moved)

    def update(server: Global, reports: Aggregate) -> Global:
        change = tree.add(server.memory, reports.value)
        memory = tree.add(server.memory, tree.scale(reports.clients / population, reports.value))
        return Global(tree.add(server.params, tree.scale(server_lr, change)), memory)

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    begun = Algorithm(
        task, task.init, lambda params: Global(params, tree.zeros_like(params)), tree.zeros_like, (exchange,)
    )
    return begun._replace(population=population)
