"""Agnostic federated learning: one model for the worst mixture of the clients, in which shares grow where the
loss is large.

    exchange 1 (silent)    F_i = f_i(x)                           one pass; the loss stays with the client
    exchange 2             y_i <- local steps from x
    server                 x <- sum_i l_i y_i / sum_i l_i,        l <- nearest point of the simplex to (l + rate F)

Mohri, Sivek and Suresh, "Agnostic Federated Learning", ICML 2019, figure 2. The server reads the losses
client by client; the share of an absent client falls only by what others gain.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = afl(models.linear(features=3), local=optax.sgd(0.1), rate=0.1, population=4)
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, Told, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, keep, local_training, whole_loss
from fedjax_core.task import Task
from fedjax_core.types import Array, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x, and the shares l of all clients, which sum to 1."""

    params: Params
    shares: Array  # [N]


@scheduled("task", "local", "rate")
def afl(task: Task, local: optax.GradientTransformation, rate: float, population: int) -> Algorithm:
    """AFL for `population` clients, whose shares begin equal and move by `rate`; a rate of 0 is FedAvg with
    clients weighted alike."""
    if population < 1:
        raise ValueError(f"afl needs population >= 1, got {population}")
    begin, step = local_training(task, local, start=lambda received, own: received.message)

    def finish(received: Told, carry: Local, seen: Seen) -> Report:
        moved = tree.scale(received.mine * population, tree.sub(carry.params, received.message))
        return Report(
            moved,
            uniform(seen),
            own=carry.own,
            stats={"loss": carry.own, "share": received.mine * population},
        )

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        stats, weight = reports.each.stats, reports.each.weight
        share = jnp.sum(weight * stats["share"]) / jnp.maximum(reports.weight, 1e-30)
        gain = rate * jnp.where(weight > 0, stats["loss"], 0)
        shares = to_simplex(server.shares.at[reports.each.position].add(gain, mode="drop"))
        return Global(
            tree.add(server.params, tree.scale(1 / jnp.maximum(share, 1e-30), reports.value)), shares
        )

    find = Exchange(
        lambda server: server.params,
        whole_loss(task, lambda params, own, loss, seen: keep(loss)),
        None,
        work=ONCE,
    )
    train = Exchange(
        lambda server: server.params,
        Client(begin, step, finish),
        update,
        address=lambda server, positions: server.shares.at[positions].get(mode="clip"),
    )
    begun = Algorithm(task, task.init, lambda params: Global(params, jnp.full(population, 1 / population, jnp.float32)),
                      lambda params: jnp.float32(0), (find, train))  # fmt: skip
    return begun._replace(population=population)


def to_simplex(x: Array) -> Array:
    """The point nearest to `x` [N] whose numbers are not negative and sum to 1.

    >>> to_simplex(jnp.array([0.5, 1.0, -2.0])).tolist()
    [0.25, 0.75, 0.0]
    """
    falling = jnp.sort(x)[::-1]
    lowered = (jnp.cumsum(falling) - 1) / jnp.arange(1, len(x) + 1, dtype=x.dtype)
    count = jnp.sum(falling > lowered)
    return jnp.maximum(x - lowered[count - 1], 0)
