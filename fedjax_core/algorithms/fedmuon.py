"""FedMuon: Muon at the clients with corrected gradients, as a mean of directions is not the direction of a
mean.

    y   <- y - local(g(y) + c - c_i)                    local steps from y = x; `local` is Muon
    c_i <- mean of the g(y) of these steps              stays with the client
    x   <- x + server_lr mean(y_i - x),    c <- c + (|S| / N) mean(change of c_i)

Muon moves along the orthogonal matrix nearest to its momentum. Without the correction ("Local Muon", `fedavg`
with Muon), the directions of clients that disagree can cancel where their gradients do not, and training
stalls at a point that is not optimal.

Takezawa et al., "FedMuon: Federated Learning with Bias-corrected LMO-based Optimization", ICLR 2026.

>>> import optax.contrib
>>> from fedjax_core import models
>>> algorithm = fedmuon(models.mlp(3, (4,), classes=2), local=optax.contrib.muon(0.02), population=100)
"""

from typing import Any, NamedTuple

import jax
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import At, Local, check_optimizer, local_training
from fedjax_core.task import Task
from fedjax_core.types import Params


class Global(NamedTuple):
    """The model x, and the mean gradient of all clients, c."""

    params: Params
    control: Params


class Change(NamedTuple):
    """A client's update: the changes of its model and of its mean gradient."""

    params: Any
    control: Any


@scheduled("task", "local", "server_lr")
def fedmuon(
    task: Task, local: optax.GradientTransformation, population: int, server_lr: float = 1.0
) -> Algorithm:
    """FedMuon for `population` clients, who count alike; `local` is `optax.contrib.muon(...)`, or any
    optimiser whose steps are biased."""
    if population < 1:
        raise ValueError(f"fedmuon needs population >= 1, got {population}")

    def corrected(grads: Params, point: At) -> Params:
        return jax.tree.map(lambda g, c, c_i: g + c - c_i, grads, point.message.control, point.own)

    summing = optax.GradientTransformation(
        tree.zeros_like, lambda grads, total, params=None: (grads, tree.add(total, grads))
    )
    begin, step = local_training(
        task,
        optax.chain(summing, check_optimizer(local, "local")),
        start=lambda message, own: message.params,
        correct=corrected,
    )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        # the mean of g - c_i
        moved: Any = tree.sub(tree.scale(1 / seen.steps, carry.opt[0]), message.control)
        return Report(
            Change(tree.sub(carry.params, message.params), moved),
            uniform(seen),
            own=tree.add(carry.own, moved),
        )

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
