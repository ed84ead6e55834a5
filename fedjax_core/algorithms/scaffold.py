"""SCAFFOLD: local steps corrected by the gap between the server's and the client's control variate.

    y   <- y - lr (g(y) + c - c_i)             each of T local steps, from y = x
    c_i <- c_i - c + (x - y) / (T lr)          stays with the client (option II)
           grad f_i(x)                         in one more pass over the client's data (option I)
    x   <- x + server_lr mean(y_i - x),    c <- c + (|S| / N) mean(change of c_i)

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1.

>>> from fedjax_core import models
>>> algorithm = scaffold(models.linear(features=3), lr=0.1, population=100)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, keep, local_training, whole_gradient
from fedjax_core.task import Task
from fedjax_core.types import Array, Params, known
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x and the server's control variate c."""

    params: Params
    control: Params


class Fresh(NamedTuple):
    """What a client keeps in option I: its control variate c_i, and what comes in its place."""

    control: Params
    next: Params


class Change(NamedTuple):
    """What a client reports: how its model and its control variate moved."""

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
    option: Literal["I", "II"] = "II",
) -> Algorithm:
    """SCAFFOLD with local step size `lr` for `population` clients; reports count alike, as in the paper, or by `by_examples`.

    `option` says how clients renew their control variates: "II" costs nothing, and "I" a pass over the client's data, with less noise.
    """
    if option not in ("I", "II"):
        raise ValueError(f'option of scaffold must be "I" or "II", got {option!r}')
    if known(population, lr) and (population < 1 or lr <= 0):
        raise ValueError(f"scaffold needs population >= 1 and lr > 0 (it divides by both), got population={population}, lr={lr}")

    def control_of(own: Any) -> Params:
        return own.control if option == "I" else own

    begin, step = local_training(
        task,
        optax.sgd(lr),
        start=lambda message, own: message.params,
        correct=lambda grads, at: jax.tree.map(lambda g, c, c_i: g + c - c_i, grads, at.message.control, control_of(at.own)),
    )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        moved, before = tree.sub(carry.params, message.params), control_of(carry.own)
        if option == "I":
            after, own = carry.own.next, Fresh(carry.own.next, carry.own.next)
        else:
            drift = tree.scale(-1 / (seen.steps * lr), moved)
            own = after = jax.tree.map(lambda c_i, c, d: c_i - c + d, before, message.control, drift)
        return Report(Change(moved, tree.sub(after, before)), weighting(seen), own)

    def update(server: Global, reports: Aggregate) -> Global:
        share = reports.clients / population
        return Global(
            tree.add(server.params, tree.scale(server_lr, reports.value.params)),
            tree.add(server.control, tree.scale(share, reports.value.control)),
        )

    def renew(message: Global, own: Fresh, grads: Params, seen: Seen) -> Report:
        return keep(Fresh(own.control, tree.like(grads, message.params)))

    def init_client(params: Params) -> Any:
        return Fresh(zeros(params), zeros(params)) if option == "I" else zeros(params)

    zeros = partial(jax.tree.map, jnp.zeros_like)
    find = Exchange(lambda server: server, whole_gradient(task, renew, at=lambda message: message.params), None, work=ONCE)
    train = Exchange(lambda server: server, Client(begin, step, finish), update)
    exchanges = (find, train) if option == "I" else (train,)
    return Algorithm(task, task.init, lambda params: Global(params, zeros(params)), init_client, exchanges, population=population)
