"""FedADMM and FedPD: clients and server agree on a model by the alternating direction method of multipliers.

    w_i <- w_i - local(g(w_i) + u_i + rho (w_i - x))        local steps from the w_i that the client kept
    u_i <- u_i + rho (w_i - x)                              the price of its disagreement; both stay with the client
    x   <- x + server_lr mean of the change of (w_i + u_i / rho)

Gong, Li and Freris, "FedADMM: A Robust Federated Deep Learning Framework with Adaptivity to System
Heterogeneity", ICDE 2022. With all clients in every round and `server_lr=1` the server has the mean of w_i +
u_i / rho, which is FedPD with eta = 1 / rho and communication in every round: Zhang et al., "FedPD: A
Federated Learning Framework with Adaptivity to Non-IID Data", 2021.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedadmm(models.linear(features=3), rho=0.1, local=optax.sgd(0.1))
"""

from typing import NamedTuple

import jax
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import At, Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Params, known


class Global(NamedTuple):
    """The model x."""

    params: Params


class Own(NamedTuple):
    """A client's state: its model w_i, and its dual variable u_i."""

    params: Params
    dual: Params


@scheduled("task", "rho", "local", "server_lr")
def fedadmm(task: Task, rho: float, local: optax.GradientTransformation, server_lr: float = 1.0) -> Algorithm:
    """FedADMM with penalty `rho`; clients count alike. If few of many take part, a `server_lr` equal to their
    share is safest."""
    if known(rho) and rho <= 0:
        raise ValueError(f"fedadmm needs rho > 0 (it divides by it), got {rho}")

    def augmented(grads: Params, point: At) -> Params:
        return jax.tree.map(
            lambda g, u, w, x: g + u + rho * (w - x), grads, point.own.dual, point.params, point.message
        )

    begin, step = local_training(task, local, start=lambda params, own: own.params, correct=augmented)

    def meant(own: Own) -> Params:
        return tree.add(own.params, tree.scale(1 / rho, own.dual))

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        own = Own(carry.params, tree.add(carry.own.dual, tree.scale(rho, tree.sub(carry.params, params))))
        return Report(tree.sub(meant(own), meant(carry.own)), uniform(seen), own)

    def update(server: Global, reports: Aggregate) -> Global:
        return Global(tree.add(server.params, tree.scale(server_lr, reports.value)))

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update)
    return Algorithm(
        task, task.init, Global, lambda params: Own(params, tree.zeros_like(params)), (exchange,)
    )
