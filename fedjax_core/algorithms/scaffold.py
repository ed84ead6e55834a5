"""SCAFFOLD: local steps corrected by the gap between the server's and the client's control variate.

    y   <- y - lr (g(y) + c - c_i)             each of T local steps, from y = x
    c_i <- c_i - c + (x - y) / (T lr)          stays with the client
    x   <- x + server_lr mean(y_i - x),    c <- c + (|S| / N) mean(change of c_i)

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1
with option II. Option I, which renews c_i in one more pass over the data, is `scaffold_one`.

>>> from fedjax_core import models
>>> algorithm = scaffold(models.linear(features=3), lr=0.1, population=100)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import At, Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Params, known


class Global(NamedTuple):
    """The model x and the server's control variate c."""

    params: Params
    control: Params


class Change(NamedTuple):
    """A client's update: the changes of its model and of its control variate."""

    params: Any
    control: Any


@scheduled("task", "lr", "server_lr")
def scaffold(
    task: Task,
    lr: float,
    population: int,
    server_lr: float = 1.0,
    *,
    weighting: Callable[[Seen], Array] = uniform,
) -> Algorithm:
    """SCAFFOLD with local step size `lr` for `population` clients; reports count alike, as in the paper, or
    by `by_examples`."""
    if known(population, lr) and (population < 1 or lr <= 0):
        raise ValueError(
            f"scaffold needs population >= 1 and lr > 0 (it divides by both), got population={population}, lr={lr}"
        )

    def correct(grads: Params, point: At) -> Params:
        return jax.tree.map(lambda g, c, c_i: g + c - c_i, grads, point.message.control, point.own)

    begin, step = local_training(
        task, optax.sgd(lr), start=lambda message, own: message.params, correct=correct
    )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        moved = tree.sub(carry.params, message.params)
        drift = tree.scale(-1 / (seen.steps * lr), moved)
        control = jax.tree.map(lambda c_i, c, d: c_i - c + d, carry.own, message.control, drift)
        return Report(Change(moved, tree.sub(control, carry.own)), weighting(seen), own=control)

    def update(server: Global, reports: Aggregate) -> Global:
        share = reports.clients / population
        return Global(
            tree.add(server.params, tree.scale(server_lr, reports.value.params)),
            tree.add(server.control, tree.scale(share, reports.value.control)),
        )

    exchange = Exchange(lambda server: server, Client(begin, step, finish), update)
    begun = Algorithm(
        task, task.init, lambda params: Global(params, tree.zeros_like(params)), tree.zeros_like, (exchange,)
    )
    return begun._replace(population=population)
