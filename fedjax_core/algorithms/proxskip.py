"""ProxSkip (Scaffnew): local steps with a control variate, until the server's coin says to average.

    y   <- y - lr (g(y) - h_i)             T local steps from y = x; T ~ Geometric(p), the same for all clients
    x   <- mean of y_i
    h_i <- h_i + (p / lr) (x - y_i)        stays with the client; done when it receives the new x

Mishchenko et al., "ProxSkip: Yes! Local Gradient Steps Provably Lead to Communication Acceleration!
Finally!", ICML 2022, algorithm 2. There the coin is flipped before each step; here the server draws the
number of failures.

>>> from fedjax_core import models
>>> algorithm = proxskip(models.linear(features=3), lr=0.1, probability=0.25)
>>> int(algorithm.init(algorithm.init_params(None)).steps)
4
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    Report,
    Seen,
    gradient,
    uniform,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params, known


class Global(NamedTuple):
    """The model x, and T, the number of local steps from it."""

    params: Params
    steps: Array  # int32


class Own(NamedTuple):
    """A client's state: its control variate h_i, and the end of its last local steps."""

    control: Params
    params: Params


class Local(NamedTuple):
    """The client's model y, its control variate, and the steps that it took."""

    params: Params
    control: Params
    taken: Array  # int32


@scheduled("task", "lr")
def proxskip(task: Task, lr: float, probability: float) -> Algorithm:
    """ProxSkip with local step size `lr`; clients average after each step with this `probability`, all of
    them in every round.

    A round has at most the run's local steps: give several times 1 / probability (`steps=`). Steps beyond the
    drawn number change nothing. The first round takes 1 / probability steps, as nothing is drawn before it.
    """
    if known(lr, probability) and not (lr > 0 and 0 < probability <= 1):
        raise ValueError(
            f"proxskip needs lr > 0 and 0 < probability <= 1, got lr={lr}, probability={probability}"
        )

    def begin(message: Global, own: Own, key: Key) -> Local:
        missed = tree.scale(probability / lr, tree.sub(message.params, own.params))
        return Local(message.params, tree.add(own.control, missed), jnp.int32(0))

    def step(message: Global, carry: Local, batch: Batch, key: Key) -> tuple[Local, dict[str, Mean]]:
        grads, metrics = gradient(task, carry.params, batch, key)
        moved = jax.tree.map(lambda y, g, h: y - lr * (g - h), carry.params, grads, carry.control)
        goes_on = carry.taken < message.steps
        params = tree.where(goes_on, moved, carry.params)
        return Local(params, carry.control, carry.taken + 1), tree.where(
            goes_on, metrics, tree.zeros_like(metrics)
        )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        return Report(
            tree.sub(carry.params, message.params), uniform(seen), own=Own(carry.control, carry.params)
        )

    def update(server: Global, reports: Aggregate) -> Global:
        steps = jax.random.geometric(reports.key, probability, dtype=jnp.int32)
        return Global(tree.add(server.params, reports.value), steps)

    def init(params: Params) -> Global:
        return Global(params, jnp.round(1 / jnp.float32(probability)).astype(jnp.int32))

    exchange = Exchange(lambda server: server, Client(begin, step, finish), update)
    return Algorithm(task, task.init, init, lambda params: Own(tree.zeros_like(params), params), (exchange,))
