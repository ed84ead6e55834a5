"""FedMGDA+: the server moves along the shortest mixture of the clients' directions, so that no client's loss
goes up.

    u_i = (y_i - x) / |y_i - x|                                           local steps from y = x
    l   = argmin |sum_i l_i u_i|^2,   l_i >= 0, sum l_i = 1, |l_i - 1/K| <= trust
    x   <- x + server_lr sum_i l_i u_i

Hu, Shaloudegi, Zhang and Yu, "Federated Learning Meets Multi-Objective Optimization", IEEE Transactions on
Network Science and Engineering 2022, algorithm 1. The server needs every client's direction.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedmgda(models.linear(features=3), local=optax.sgd(0.1), server_lr=0.1, trust=0.5)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, nothing, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Params

_STEPS = 300  # of projected gradient descent in K dimensions


class Global(NamedTuple):
    """The model x."""

    params: Params


@scheduled("task", "local", "server_lr")
def fedmgda(
    task: Task, local: optax.GradientTransformation, server_lr: float, trust: float = 1.0
) -> Algorithm:
    """FedMGDA+; `trust`, from 0 (all count alike) to 1, is the largest distance of a client's share from 1 /
    K."""
    if not 0 <= trust <= 1:
        raise ValueError(
            f"trust must be from 0 to 1, got {trust}: it bounds how far a client's share is from 1 / K"
        )
    begin, step = local_training(task, local)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        moved = tree.sub(carry.params, params)
        return Report(tree.scale(1 / jnp.maximum(tree.norm(moved), 1e-12), moved), uniform(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        leaves = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(reports.value)]
        shares = shortest(sum((x @ x.T for x in leaves), jnp.float32(0)), reports.each.weight > 0, trust)
        mixed = jax.tree.map(lambda x: jnp.tensordot(shares, x, 1), reports.value)
        return Global(tree.add(server.params, tree.scale(server_lr, mixed)))

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update, reports="all")
    return Algorithm(task, task.init, Global, nothing, (exchange,))


def shortest(products: Array, here: Array, trust: float) -> Array:
    """The shares [K] of the shortest mixture of vectors with these inner products [K, K], of those that are
    `here`."""
    alike = here.astype(jnp.float32) / jnp.maximum(jnp.sum(here), 1).astype(jnp.float32)
    low, high = (
        jnp.where(here, jnp.maximum(alike - trust, 0), 0),
        jnp.where(here, jnp.minimum(alike + trust, 1), 0),
    )

    def within(x: Array) -> Array:
        """The point nearest to x with numbers in [low, high] that sum to 1: one shift for all, by
        bisection."""

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (ends[0] + ends[1]) / 2
            above = jnp.sum(jnp.clip(x - middle, low, high)) > 1
            return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

        ends = jax.lax.fori_loop(0, 40, halve, (jnp.min(x) - 2, jnp.max(x) + 2))
        return jnp.clip(x - (ends[0] + ends[1]) / 2, low, high)

    rate = 1 / jnp.maximum(jnp.trace(products), 1e-12)
    return jax.lax.fori_loop(0, _STEPS, lambda _, shares: within(shares - rate * (products @ shares)), alike)
